"""What the stacks of workers that hang say: who stands in a collective and waits for the others, and who does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SECTION: Final = re.compile(r"^local rank (\d+)\n", re.MULTILINE)
_THREAD: Final = re.compile(r"^(?=(?:Current thread|Thread) )", re.MULTILINE)
_MAIN: Final = re.compile(r'^Current thread |^Thread [^\n]*"MainThread"')
"""The head of the thread that does the work, as faulthandler (it takes the signal) and py-spy write it."""
_FRAME: Final = re.compile(
    r"^\s+(?:File (?P<file>.+), line \d+ in (?P<name>\S+)|(?P<called>\S+) \((?P<at>.+)\))$", re.MULTILINE
)
_COLLECTIVE: Final = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast(?!_(?:to|arrays|shapes|tensors)\b)|barrier"
    r"|batch_isend_irecv|wait_tensor"
)
"""In names of functions in which a rank waits for others: torch.distributed's, DeepSpeed's and FSDP's."""
_OF_TORCH: Final = re.compile(
    r"i?send|i?recv|(?:send|recv)_object_list|gather(?:_object)?|scatter(?:_object_list)?|reduce|synchronize"
)
"""Whole names that count in their files alone: pipes of helper processes are received from, too."""


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
    """Whether the main thread stands in a collective; any thread, where none is called so."""
    threads = _THREAD.split(stack)
    for frame in _FRAME.finditer(next((thread for thread in threads if _MAIN.match(thread)), stack)):
        file = frame["file"] or frame["at"]
        name = (frame["name"] or frame["called"]).rpartition(".")[2]  # py-spy puts the class before it
        if _COLLECTIVE.search(name) or (re.search("torch|deepspeed", file) and _OF_TORCH.fullmatch(name)):
            return True
    return False
