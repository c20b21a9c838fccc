"""How a local run ended, for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from videotrain.report.trouble import failing_log
from videotrain.results.folder import TRANSFORMER, Results
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Condition, Phase

EXIT_SUSPENDED: Final = 130
"""As for a program that Ctrl-C ended."""


@dataclass(frozen=True)
class Outcome:
    """What the command answers with."""

    exit_code: int
    message: str
    """One sentence."""
    details: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    """Where results are, by what they are."""
    following: Sequence[str] = ()
    """Commands that may come next."""


def outcome_of(run: Json, workdir: Path, interrupted: bool) -> Outcome:
    """The outcome of a run whose nodes are released.

    Args:
        run: the VideoTrainingRun with its status.
        workdir: its working directory.
        interrupted: this process suspended it, as Ctrl-C asks.
    """
    status = read_status(run.get("status")).status
    name = run["metadata"]["name"]
    if status.phase == Phase.SUCCEEDED:
        return Outcome(0, f"run {name} succeeded", _measured(status))
    if status.phase == Phase.FAILED:
        reason = _told(status, Condition.FAILED)
        return Outcome(1, f"run {name} failed: {reason}", _failing_log(status, workdir))
    if interrupted:
        return Outcome(EXIT_SUSPENDED, f"run {name} is suspended, everything is saved; the same command goes on")
    return Outcome(
        0 if (run["spec"].get("suspend")) else 1, f"run {name} is suspended: {_told(status, Condition.SUSPENDED)}"
    )


def _measured(status: RunStatus) -> list[str]:
    """A line for each stage that evaluates."""
    return [
        f"{stage.name} measured " + ", ".join(f"{measure} {value:.4g}" for measure, value in stage.evaluation.means())
        for stage in status.stages
        if stage.evaluation is not None
    ]


def next_commands(workdir: Path, exit_code: int, results: Results) -> list[str]:
    """What a person may type after a run.

    Args:
        workdir: its working directory.
        exit_code: of the run; one that is suspended is gone on with first.
        results: what it left.
    """
    folder = shlex.quote(str(workdir))
    commands = []
    if exit_code not in (0, EXIT_SUSPENDED):
        commands.append(f"videotrain get --workdir {folder}")
    if results.has(TRANSFORMER):
        commands.append(f"videotrain sample --workdir {folder} --prompt 'A red ball rolls over grass.'")
        commands.append(f"videotrain export --workdir {folder} --to diffusers {folder}/exported")
    if results.fetched:
        last = results.fetched[0].stage
        commands.append(f"videotrain fork --workdir {folder} --from {last} --to {folder}-2  # with --set PATH=VALUE")
        commands.append(f"videotrain serve {folder}")
    return commands


def _told(status: RunStatus, type_: str) -> str:
    found = next((condition for condition in status.conditions if condition.type == type_), None)
    return ": ".join(part for part in (found.reason, found.message) if part) if found else "no reason is known"


def _failing_log(status: RunStatus, workdir: Path) -> list[str]:
    """The last lines of the log of the pod that failed last."""
    found = failing_log(status, workdir)
    return [f"the last lines of {found.path}:", *(f"  | {line}" for line in found.lines)] if found else []
