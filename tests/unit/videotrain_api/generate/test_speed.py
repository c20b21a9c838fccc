"""The page of modelled speed: every published row stands there, and nothing modelled is called measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from videotrain_api.cost.published import ROWS
from videotrain_api.cost.sensitivity import CHANGES
from videotrain_api.generate.speed import speed_page

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def page() -> str:
    return speed_page(ROOT)


def test_every_published_row_has_a_row_of_the_recipe(page):
    table = page.partition("## Rows")[2].partition("\n## ")[0]
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[4:] if line] == [row.name for row in ROWS]


def test_every_changed_rate_stands_in_both_tables(page):
    assert all(page.count(f"| {what} |") == 2 for what in CHANGES)


def test_nothing_is_called_measured(page):
    assert "no GPU measured it" in page
    assert re.findall("measured", page.replace("no GPU measured it", "")) == []
    heads = [line for line in page.splitlines() if line.startswith(("| row", "| stage"))]
    assert all("modelled" in head for head in heads) and len(heads) == 2
