"""How far tests with random or many cases go: plain `tox` a part of the way, `tox -e lives` all of it."""

import os

AT_LENGTH = os.environ.get("VIDEOTRAIN_AT_LENGTH") == "1"


def cases(plain: int, at_length: int) -> int:
    """How many of them there are."""
    return at_length if AT_LENGTH else plain
