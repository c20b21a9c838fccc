"""How far tests with many cases go: plain `tox` a part of the way; all random ones are in `tox -e lives`, others in
`tox -e at-length`."""

import os

import pytest

AT_LENGTH = os.environ.get("VIDEOTRAIN_AT_LENGTH") == "1"


def at_length(*values: object) -> object:
    """A case of a parametrized test that only `tox -e at-length` runs, since others like it run everywhere."""
    return pytest.param(*values, marks=pytest.mark.at_length)


def cases(plain: int, most: int) -> int:
    """How many of them there are."""
    return most if AT_LENGTH else plain
