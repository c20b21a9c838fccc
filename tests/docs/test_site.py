"""The pages as a site: built strictly, with every page, and nothing from elsewhere."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from support.doc_blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    told: list[str] = []

    class Warnings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    log = logging.getLogger("mkdocs")
    handler = Warnings(logging.WARNING)
    log.addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        log.removeHandler(handler)
    assert told == []
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    wanted = [page.parent if page.name == "README.md" else page.with_suffix("") for page in pages]
    assert [str(page) for page in wanted if not (site / page / "index.html").is_file()] == []
    assert (site / "repository/CHANGELOG/index.html").is_file(), "what pages link to is there, too"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\"\s>]+)")
    found = {link for page in site.rglob("*.html") for link in loads.findall(page.read_text(encoding="utf-8"))}
    assert found == set()


def test_a_dead_link_is_no_site(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Page\n\n[there](nowhere.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text().replace("hooks: [docs/site/hooks.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(settings)
    with pytest.raises(SystemExit, match="strict mode"):
        build(load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
