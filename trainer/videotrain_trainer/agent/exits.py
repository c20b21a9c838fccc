"""How a generation ended in this pod, from what its workers said and what was seen of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from videotrain_api.records import Roster, WorkerExit
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.agent.messages import WorkerDeath

EndState = Literal["succeeded", "drained", "failed"]

_CONSEQUENCES = (ExitCode.PEER_LOST, ExitCode.TERMINATED)
"""Codes of workers that ended because another one had: a lost peer, then torch's launcher stopping the siblings."""


def status_code(exit_code: int) -> int:
    """Exit code in the shell's manner: 128 + n for a process that signal n killed."""
    return 128 - exit_code if exit_code < 0 else exit_code


def silent_exit(roster: Roster, local_rank: int, step: int, at: datetime, code: int, message: str) -> WorkerExit:
    """The exit record of a worker that could not write one; code 0 means that it had not yet begun."""
    return WorkerExit(
        generation=roster.generation,
        stage=roster.stage,
        config_hash=roster.config_hash,
        local_rank=local_rank,
        at=at,
        code=code,
        outcome="failed" if code else "drained",
        step=step,
        message=message,
    )


def death_message(death: WorkerDeath) -> str:
    """What became of a worker, for people."""
    if death.exit_code == -9:
        return "killed by SIGKILL: the kernel's out-of-memory killer, or somebody outside"
    if death.exit_code < 0:
        return f"killed by signal {-death.exit_code}"
    return f"ended with status {death.exit_code} without an exit record"


def end_state(exits: Iterable[WorkerExit], processes: int) -> EndState:
    """`succeeded` if every local worker completed, `drained` if every one ended regularly, else `failed`."""
    outcomes = [record.outcome for record in exits]
    if len(outcomes) < processes or "failed" in outcomes:
        return "failed"
    return "succeeded" if set(outcomes) == {"completed"} else "drained"


def root_cause(exits: Sequence[WorkerExit]) -> WorkerExit | None:
    """The first failure in time that is not the consequence of another; the last regular end if nothing failed."""
    failures = [record for record in exits if record.outcome == "failed"]
    if not failures:
        return max(exits, key=lambda record: record.at, default=None)
    return min(failures, key=lambda record: (_blame(record.code), record.at))


def _blame(code: int) -> int:
    return _CONSEQUENCES.index(ExitCode(code)) + 1 if code in _CONSEQUENCES else 0
