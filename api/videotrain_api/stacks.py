"""What the stacks of workers that hang say: who stands in a collective and waits for the others, and who does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SECTION: Final = re.compile(r"^local rank (\d+)\n", re.MULTILINE)
_COLLECTIVE: Final = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast|barrier|batch_isend_irecv|wait_tensor",
    re.IGNORECASE,
)
"""Names of functions in which a rank waits for others: torch.distributed's, DeepSpeed's and FSDP's."""


def joined(stacks: Mapping[int, str], most: int) -> str:
    """The stacks of a pod's workers as one text, those first that stand in no collective: the others wait for them.

    Args:
        stacks: by local rank.
        most: characters of the text; what is longer is cut.
    """
    order = sorted(stacks, key=lambda rank: (_waits(stacks[rank]), rank))
    return "\n".join(f"local rank {rank}\n{stacks[rank]}" for rank in order)[:most]


def stuck_ranks(text: str) -> list[int]:
    """Local ranks of such a text that stand in no collective, or whose stack could not be read."""
    parts = _SECTION.split(text)[1:]  # rank, stack, rank, stack, ...
    return [int(rank) for rank, stack in zip(parts[::2], parts[1::2], strict=True) if not _waits(stack)]


def _waits(stack: str) -> bool:
    return _COLLECTIVE.search(stack) is not None
