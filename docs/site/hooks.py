"""Hooks of MkDocs: what pages link to outside of docs/ comes into the site, and folders have a page that lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
OUTSIDE: Final = "repository"
"""Folder of the site for what lies outside of docs/."""
_CODE: Final = re.compile(r"(```.*?^ *```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"(\]\()([^()\s#]+)(#[^()\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to and the site does not have."""
    ahead = [DOCS / file.src_uri for file in files.documentation_pages()]
    while ahead:
        page = ahead.pop()
        for target in _targets(page):
            place = _place(target)
            if files.get_file_from_path(place) is not None:
                continue
            if target.is_dir():
                files.append(File.generated(config, place, content=_listing(target)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(target)))
                ahead += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs
    """Let links lead to where the site has what they name."""
    place = page.file.src_uri
    source = ROOT / place.removeprefix(f"{OUTSIDE}/") if place.startswith(f"{OUTSIDE}/") else DOCS / place

    def moved(match: re.Match[str]) -> str:
        target = _resolved(source, match[2])
        if target is None:
            return match[0]
        there = os.path.relpath(_place(target), Path(place).parent)
        return f"{match[1]}{there}{match[3] or ''}{match[4]}"

    parts = _CODE.split(markdown)  # code stands at the odd places
    return "".join(part if at % 2 else _LINK.sub(moved, part) for at, part in enumerate(parts))


def _targets(page: Path) -> list[Path]:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    found = [_resolved(page, match[2]) for match in _LINK.finditer(text)]
    return [target for target in found if target is not None]


def _resolved(page: Path, link: str) -> Path | None:
    """The file or folder of this repository that a link of a page names; None if it is another one's."""
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return None
    target = (page.parent / link).resolve()
    return target if target.exists() and target.is_relative_to(ROOT) else None


def _place(target: Path) -> str:
    """Where the site has it."""
    inside = target.is_relative_to(DOCS)
    path = target.relative_to(DOCS if inside else ROOT)
    path = path if inside else Path(OUTSIDE) / path
    return str(path / "index.md" if target.is_dir() else path)


def _listing(folder: Path) -> str:
    if folder.is_relative_to(DOCS):
        pages = sorted(folder.glob("*.md"))
        lines = [
            f"- [{page.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}]({page.name})" for page in pages
        ]
    else:
        lines = [f"- `{path.name}{'/' if path.is_dir() else ''}`" for path in sorted(folder.iterdir())]
    return f"# {folder.relative_to(ROOT)}\n\n" + "\n".join(lines) + "\n"
