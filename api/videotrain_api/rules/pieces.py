"""Lists of pieces that hold until a step each: learning rates, weights of sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from videotrain_api.schema import Problem


def check_pieces(path: str, ends: Sequence[int | None], steps: int, what: str) -> Iterator[Problem]:
    """Pieces that are out of order, or that no step uses.

    Args:
        path: of the list.
        ends: `untilStep` of each.
        steps: of the stage.
        what: a piece says, for a message.
    """
    before, last = 0, len(ends) - 1
    for number, until in enumerate(ends):
        where = f"{path}[{number}].untilStep"
        if until is None and number != last:
            yield Problem(where, None, "only the last piece may leave it out")
            return
        if until is not None and until <= before:
            yield Problem(where, until, f"pieces must be in order; allowed: more than {before}")
        if until is not None and number != last and until >= steps:
            yield Problem(where, until, f"the pieces after it are never used; allowed: less than steps ({steps})")
        if until is not None and number == last and until < steps:
            yield Problem(where, until, f"no {what} after it; leave it out or set it to steps ({steps}) or more")
        before = until or before
