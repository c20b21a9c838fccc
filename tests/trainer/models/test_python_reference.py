import re
from pathlib import Path

import pytest

from videotrain_trainer import models

TEXT = (Path(__file__).parents[3] / "docs/reference/python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_of_the_reference_runs():
    exec(compile(BLOCKS[0], "python.md", "exec"), {})  # the project's own text


@pytest.mark.parametrize("name", [name for name in models.__all__ if name not in ("Model", "config_of")])
def test_everything_that_is_exported_is_in_the_reference(name):
    assert re.search(rf"\b{name}\b", TEXT)


def test_the_numbers_of_parameters_are_those_of_the_presets():
    rows = re.findall(r"\| `([\w-]+)` \| ([\d,]+) \| `([\w-]+)` \|", TEXT)
    assert len(rows) == 6
    for name, count, _twin in rows:
        model = models.build(name, device="meta")
        assert sum(parameter.numel() for parameter in model.parameters()) == int(count.replace(",", ""))


@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_every_layout_is_in_the_reference(layout):
    assert f"`{layout}`" in TEXT
