"""Which checkpoints to delete: pure arithmetic on step numbers."""

from __future__ import annotations

from collections.abc import Collection


def steps_to_delete(
    complete: Collection[int],
    incomplete: Collection[int],
    *,
    keep_last: int,
    keep_every: int | None = None,
    refused: Collection[int] = (),
) -> list[int]:
    """Steps whose checkpoints are no longer needed, ascending.

    The newest `keep_last` complete ones stay, and those at multiples of `keep_every` for ever. An incomplete one goes
    only if it is older than the newest complete one: a younger one may still be being written. A refused one takes no
    place among those that stay, and goes once it is older than all of them: people may want to try it again.

    Args:
        complete: steps of checkpoints that are committed.
        incomplete: steps with objects, but no commit manifest.
        keep_last: at least 1, so that the last complete one is never deleted.
        refused: steps of checkpoints that were withdrawn.
        keep_every: None if no checkpoint is kept for ever.

    Raises:
        ValueError: keep_last is below 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last: {keep_last}; the last complete checkpoint is always kept, so at least 1")
    if not complete:
        return []
    last = sorted(complete)[-keep_last:]
    kept = {*last, *(step for step in complete if keep_every is not None and step % keep_every == 0)}
    old = {step for step in incomplete if step < last[-1]} | {step for step in refused if step < last[0]}
    return sorted((set(complete) - kept) | old)
