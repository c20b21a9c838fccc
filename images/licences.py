"""The licences of everything that is pinned, from the packages' own metadata: docs/reference/licences.md.

`write` looks at the packages that are installed here and keeps what the page says of the same version of others;
`check` fails if the page does not fit lock.txt or what is installed.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "licences.md"
UNKNOWN = "not installed where this page was written"
HEAD = """# Licences of what is pinned

Written by `tox -e licences` from the packages' own metadata. The images hold those that are marked; the others are
tools of development.

| package | version | licence | in the image of |
|---|---|---|---|
"""
ROW = re.compile(r"^\| (\S+) \| (\S*\d\S*) \| (.+) \| (.*) \|$", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Versions by name."""
    lines = (line.split()[0] for line in path.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def licence(found: PackageMetadata) -> str:
    """The SPDX expression if there is one, else the classifiers, else the first line of the licence's text."""
    classifiers = [str(value) for key, value in found.items() if key == "Classifier"]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    text = found.get("License-Expression") or ", ".join(named) or (found.get("License") or "").strip()
    return (text.splitlines() or ["not stated"])[0][:80].replace("|", "/")


def page(before: str) -> str:
    """The page as it should be; `before` as it is."""
    kept = {(name, version): text for name, version, text, _ in ROW.findall(before)}
    images = {part: pins(ROOT / "images" / f"{part}.lock") for part in ("operator", "trainer", "trainer-flash4")}
    rows = []
    for name, version in sorted(pins(ROOT / "lock.txt").items()):
        text = kept.get((name, version), UNKNOWN)
        try:
            found = metadata(name)
        except PackageNotFoundError:
            pass
        else:
            text = licence(found) if found["Version"].partition("+")[0] == version.partition("+")[0] else text
        rows.append(f"| {name} | {version} | {text} | {', '.join(part for part in images if name in images[part])} |\n")
    return HEAD + "".join(rows)


def main(verb: str) -> int:
    """Write or check the page."""
    before = PAGE.read_text() if PAGE.exists() else ""
    wanted = page(before)
    if verb == "write":
        PAGE.write_text(wanted)
    elif wanted != before:
        sys.stderr.write(f"{PAGE.relative_to(ROOT)} does not fit lock.txt or the metadata; run `tox -e licences`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
