"""What is kept of a pod in which a generation failed: the end of each worker's output and its stacks, in one text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from videotrain_api.records import Roster, WorkerExit
from videotrain_api.vocabulary import ExitCode

STACK_BYTES: Final = 16 << 10
"""Of the stacks of each worker, the end: a hang is read last."""
HIDDEN: Final = "[hidden]"
_SECRET_NAMES: Final = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)
_SECRET_TEXT: Final = re.compile(
    r"(?i)(x-amz-(?:signature|credential|security-token)=|authorization: *(?:bearer|basic|aws4-hmac-sha256) )[^\s&\"']+"
)
"""What follows the group is hidden: of signed URLs and headers."""
_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
"""In a URL."""
_SHORTEST_SECRET: Final = 6
"""A shorter value may be a word of any line."""
_CONSEQUENCES: Final = (ExitCode.PEER_LOST, ExitCode.TERMINATED, ExitCode.FENCED)
"""Codes of workers that ended because of something elsewhere."""


@dataclass(frozen=True)
class WorkerEnd:
    """Of one worker."""

    rank: int
    """In the world."""
    end: WorkerExit
    output: bytes
    stacks: bytes


def is_telling(ends: Sequence[WorkerExit], first_rank: int) -> bool:
    """Whether the pod knows something of a failure that no other one does.

    Pods whose workers only lost a peer say nothing, or a fault in a world of 1,024 pods would be stored 1,024 times;
    the leader says how it looked from there. A configuration is wrong for all of them alike.
    """
    failed = [end for end in ends if end.outcome == "failed"]
    own = [end for end in failed if end.code not in (*_CONSEQUENCES, ExitCode.CONFIG)]
    return bool(own) or bool(first_rank == 0 and any(end.code != ExitCode.FENCED for end in failed))


def failure_text(roster: Roster, pod: str, node: str, workers: Iterable[WorkerEnd]) -> str:
    """The text, without secrets: what the environment holds under such names, and what looks like one in a URL."""
    parts = [f"generation {roster.generation} of stage {roster.stage}, pod {pod} on node {node or 'unknown'}"]
    for worker in workers:
        end = worker.end
        parts.append(f"==== rank {worker.rank}: {end.outcome}, code {end.code}, after step {end.step}: {end.message}")
        parts.append(f"---- the end of its output\n{_text(worker.output) or '(nothing was printed)'}")
        if worker.stacks:
            parts.append(f"---- stacks\n{_text(worker.stacks[-STACK_BYTES:])}")
    return without_secrets("\n".join(parts) + "\n", os.environ)


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text with secrets hidden."""
    for name, value in environment.items():
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST_SECRET and "/" not in value[:1]:
            text = text.replace(value, HIDDEN)
    return _PASSWORD.sub(rf"\1{HIDDEN}", _SECRET_TEXT.sub(rf"\1{HIDDEN}", text))


def _text(data: bytes) -> str:
    return data.decode(errors="replace").rstrip("\n")
