"""Words of refusals for every kind of wrong value that YAML can hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

CASES: dict[str, tuple[str, Any, str]] = {
    "a word for an integer": ("pool.gpusPerNode", "two", "allowed: an integer from 0 to 64, without quotes"),
    "a fraction for an integer": ("pool.gpusPerNode", 2.5, "allowed: an integer from 0 to 64"),
    "a switch for an integer": ("pool.gpusPerNode", True, "allowed: an integer from 0 to 64"),
    "an integer below its limit": ("pool.gpusPerNode", -1, "allowed: a number from 0 to 64"),
    "an integer with one limit": ("checkpoint.everySteps", "1e3", "allowed: an integer, at least 1, without quotes"),
    "a word for a switch": ("suspend", "yes", "allowed: true or false, without quotes"),
    "a number for a mapping of fields": ("nodes", 3, "allowed: a mapping of the fields allowed, max, min"),
    "a list for a mapping": ("pool.nodeSelector", ["a"], "allowed: a mapping (`name: value`)"),
    "a word for a list": ("stages", "x", "allowed: a list (`[value, value]`, or lines that begin with `-`)"),
    "an empty list": ("stages", [], "allowed: at least 1 entry"),
    "a number for a string": ("pool.pricePerGpuHour", 2.0, "must be a string: put it in quotes"),
    "a list for a string": ("pool.cpu", ["1"], "allowed: a string"),
    "a near miss of a choice": ("budget.action", "shrink", "did you mean 'Shrink'? allowed: "),
    "no choice at all": (
        "stages.0.task",
        "nope",
        "allowed: 'curate', 'autoencoder', 'encode', 'train', 'sample' or 'evaluate'",
    ),
}


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(manifest)
    place: Any = whole["spec"]
    *above, last = path.split(".")
    for name in above:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    place[int(last) if last.isdigit() else last] = value
    return whole


@pytest.mark.parametrize(("path", "value", "words"), CASES.values(), ids=CASES)
def test_a_wrong_value_is_told_with_what_is_allowed(manifest, path: str, value: Any, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_run(changed(manifest, path, value))
    where = "spec." + path.replace(".0.", "[0].")
    told = [problem.message for problem in caught.value.problems if problem.path == where]
    assert any(message.startswith(words) for message in told), str(caught.value)
    assert "Input should" not in str(caught.value)
