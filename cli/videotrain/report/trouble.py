"""Why a run does not go on, and what its reader should do."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from videotrain_api.reasons import advice_for
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.schema import Json
from videotrain_api.storage.layout import failures_prefix
from videotrain_api.vocabulary import Condition, Phase

TAIL_LINES: Final = 25
_FAULTS: Final = ("application", "hang")
"""Causes of an end of which workers have something to tell."""
_TELLING: Final = {
    Phase.FAILED: (Condition.FAILED, "True"),
    Phase.SUSPENDED: (Condition.SUSPENDED, "True"),
    Phase.INVALID: (Condition.ACCEPTED, "False"),
}
"""The condition that tells why, by phase."""


class Trouble(NamedTuple):
    """Why a run does not go on."""

    reason: str
    message: str
    advice: str


class LogTail(NamedTuple):
    """The end of a log."""

    path: Path
    lines: tuple[str, ...]


def trouble_of(status: RunStatus) -> Trouble | None:
    """Why a run rests before its end; None if it goes on, or is done."""
    kind, holds = _TELLING.get(Phase(status.phase), (None, "")) if status.phase in set(Phase) else (None, "")
    found = next((c for c in status.conditions if (c.type, c.status) == (kind, holds)), None)
    if kind is None or found is None:
        return None
    return Trouble(found.reason, found.message, advice_for(kind, found.reason))


def failures_folder(run: Json, status: RunStatus) -> str | None:
    """URI of the folder with log tails and stacks of the generations that failed; None if none did."""
    if not any(one.end_cause in _FAULTS or _failed(one) for one in status.generations):
        return None
    return failures_prefix(run["spec"]["storage"]["uri"], run["metadata"]["name"], run["metadata"].get("uid", ""))


def _failed(generation: GenerationStatus) -> bool:
    progress = generation.progress
    return progress is not None and progress.exit is not None and progress.exit.outcome == "failed"


def failing_log(status: RunStatus, workdir: Path) -> LogTail | None:
    """The end of the log of the pod that failed last; None if no log of it is there."""
    members = status.generations[-1].members if status.generations else []
    told = " ".join(condition.message for condition in status.conditions if condition.type == Condition.FAILED)
    named = [pod for pod in members if pod in told]
    logs = [path for pod in named or members for path in (workdir / "logs").glob(f"{pod}-????????.log")]
    if not logs:
        return None
    newest = max(logs, key=lambda path: path.stat().st_mtime_ns)
    with newest.open(encoding="utf-8", errors="replace") as file:
        return LogTail(newest, tuple(line.rstrip("\n") for line in deque(file, TAIL_LINES)))
