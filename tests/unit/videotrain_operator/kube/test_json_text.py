"""JSON of any depth is read without a stack of that depth."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.vocabulary import Phase
from videotrain_operator.kube.json_text import DEEPEST, read_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(VALUES)
def test_what_is_not_deep_is_read_as_it_stands(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert read_json(text) == read_json(text.encode()) == value


@given(VALUES, VALUES, st.sampled_from(["[", '{"a":']))
def test_only_what_is_too_deep_is_cut_away(before: Any, after: Any, opening: str) -> None:
    deep = opening * 3000 + json.dumps('"]}\\') + {"[": "]", '{"a":': "}"}[opening] * 3000
    read = read_json(f'{{"before": {json.dumps(before)}, "deep": {deep}, "after": {json.dumps(after)}}}')
    assert (read["before"], read["after"]) == (before, after)
    levels, place = 1, read["deep"]
    while place is not None:
        levels, (place,) = levels + 1, place if isinstance(place, list) else place.values()
    assert levels == DEEPEST


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 3000 + "]" * 2999, '{"a":' * 5000, "[" * 500 + '"', "[" * 500 + '"\\']
)
def test_what_is_cut_off_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="at line"):
        read_json(text)


def test_a_hundred_thousand_levels_end_no_process() -> None:
    code = (
        "from videotrain_operator.kube.json_text import read_json; "
        "print(len(str(read_json('[' * 1_000_000 + ']' * 1_000_000))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(2 * DEEPEST + len("None")))


def test_what_is_written_is_read_the_same() -> None:
    data = {"a": [1, 1e-15, True, None, "ä\u2028\x00", {"b": {}}], "c": (1, 2), "phase": Phase.RUNNING}
    assert json.loads(write_json(data)) == {**data, "c": [1, 2], "phase": "Running"}


def test_half_a_letter_of_a_stranger_is_written_too() -> None:
    assert json.loads(write_json({"message": "\ud800"})) == {"message": "\ud800"}


def test_what_is_no_json_is_not_written() -> None:
    with pytest.raises(TypeError):
        write_json({"a": object()})
