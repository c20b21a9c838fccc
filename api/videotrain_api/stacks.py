"""What the stacks of workers that hang say: who stands in a collective and waits for the others, and who does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

MOST_TOLD: Final = 4000
"""Characters that an agent tells of its workers' stacks."""
_SECTION: Final = re.compile(r"^local rank (\d+)\n", re.MULTILINE)
_THREAD: Final = re.compile(r"^(?=(?:Current thread|Thread) )", re.MULTILINE)
_MAIN: Final = re.compile(r'^Current thread |^Thread [^\n]*"MainThread"')
"""The head of the thread that does the work, as faulthandler (it takes the signal) and py-spy write it."""
_FRAME: Final = re.compile(
    r"^\s+(?:File (?P<file>.+), line (?P<line>\d+) in (?P<name>\S+)|(?P<called>\S+) \((?P<at>.+)\))$", re.MULTILINE
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
        most: characters of the text. If they are more, those that wait have only the call in which they do, and the
            others are cut at the end.
    """
    waits = {rank: _waits(stack) for rank, stack in sorted(stacks.items())}
    stuck = [rank for rank, frame in waits.items() if frame is None]
    whole = [_section(rank, stacks[rank]) for rank in (*stuck, *(rank for rank in waits if rank not in stuck))]
    if len("\n".join(whole)) <= most:
        return "\n".join(whole)
    room = 0 if stuck else most // len(waits) - len(_section(max(waits), "\n"))
    parts = {rank: _main_thread(stacks[rank])[:room] for rank in waits}
    short = "\n".join(
        _section(rank, parts[rank] if _waits(parts[rank]) else f"{frame}\n")
        for rank, frame in waits.items()
        if frame is not None
    )
    first = "\n".join(whole[: len(stuck)])[: max(0, most - len(short) - 1)]
    return "\n".join(filter(None, [first, short]))[:most]


def stuck_ranks(text: str) -> list[int]:
    """Local ranks of such a text that stand in no collective, or whose stack could not be read."""
    return [rank for rank, stack in _sections(text) if _waits(stack) is None]


def waiting_ranks(text: str) -> list[int]:
    """Local ranks of such a text that stand in a collective."""
    return [rank for rank, stack in _sections(text) if _waits(stack) is not None]


def calls_of(text: str, rank: int) -> str:
    """What a rank of such a text does, in a line: its main thread's calls, innermost first, or why it has none."""
    stack = dict(_sections(text)).get(rank, "")
    calls = [f"{_name(frame)} ({_place(frame)})" for frame in _FRAME.finditer(_main_thread(stack))]
    return " < ".join(calls) or " ".join(stack.split())


def _section(rank: int, stack: str) -> str:
    return f"local rank {rank}\n{stack}"


def _sections(text: str) -> Iterator[tuple[int, str]]:
    parts = _SECTION.split(text)[1:]  # rank, stack, rank, stack, ...
    return ((int(rank), stack) for rank, stack in zip(parts[::2], parts[1::2], strict=True))


def _main_thread(stack: str) -> str:
    """All of it, where no thread is called so."""
    return next((thread for thread in _THREAD.split(stack) if _MAIN.match(thread)), stack)


def _waits(stack: str) -> str | None:
    """The frame by which the main thread stands in a collective; None if it stands in none."""
    for frame in _FRAME.finditer(_main_thread(stack)):
        name = _name(frame).rpartition(".")[2]  # py-spy puts the class before it
        file = frame["file"] or frame["at"]
        if _COLLECTIVE.search(name) or (re.search("torch|deepspeed", file) and _OF_TORCH.fullmatch(name)):
            return frame[0].strip("\n")
    return None


def _name(frame: re.Match[str]) -> str:
    return frame["name"] or frame["called"]


def _place(frame: re.Match[str]) -> str:
    """The end of its path, and the line."""
    path, _, line = frame["at"].rpartition(":") if frame["at"] else (frame["file"].strip('"'), "", frame["line"])
    return f"{'/'.join(path.split('/')[-2:])}:{line}"
