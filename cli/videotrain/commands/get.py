"""`videotrain get --workdir`: the state of a local run, also while another process runs it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from videotrain.commands.formats import Output, write_runs
from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.local.screen import cost_table, render_screen, stage_table
from videotrain.manifest_file import ManifestFileError
from videotrain_api.resource.name_ranges import short_names
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.vocabulary import KIND


def print_state(workdir: Path, output: Output) -> int:
    """Print a run's state.

    Returns:
        Exit code.

    Raises:
        ManifestFileError: the folder holds no run.
    """
    runs = local_runs(workdir)
    if output != "table":
        write_runs(runs, output)
        return 0
    for run in runs:
        print_run(Console(), run)
    return 0


def local_runs(workdir: Path) -> list[dict[str, Any]]:
    """The runs of a working directory of `local`; at least one.

    Raises:
        ManifestFileError: the folder holds none.
    """
    try:
        runs = read_objects(workdir / DATABASE_FILE, KIND)
    except FileNotFoundError:
        hint = f"give the folder that `videotrain local RUN.yaml --workdir {workdir}` made"
        raise ManifestFileError(f"{workdir}: there is no {DATABASE_FILE} here; {hint}") from None
    if not runs:
        raise ManifestFileError(f"{workdir / DATABASE_FILE}: holds no {KIND} (a finished one may be past its TTL)")
    return runs


def print_run(console: Console, run: dict[str, Any]) -> None:
    """Everything that a run's status tells."""
    status = read_status(run.get("status")).status
    console.print(render_screen(run, (), [], status.completion_time or datetime.now(UTC)))
    if status.generations:
        console.print(generation_table(status))
    if status.cost:
        console.print(cost_table(status.cost))
        if status.cost.stages:
            console.print(stage_table(status.cost))
    if status.profile is not None:
        profile = status.profile
        console.print(f"trace {profile.number}: {profile.state}  {profile.message}", markup=False, soft_wrap=True)
        for trace in profile.traces:
            console.print(f"  rank {trace.rank}: {trace.error or trace.uri}", markup=False, soft_wrap=True)
    for condition in status.conditions:
        console.print(f"{condition.type}={condition.status}  {condition.reason}  {condition.message}", markup=False)


def generation_table(status: RunStatus) -> Table:
    """Who was in the world when, and why it changed."""
    table = Table(title="Generations", title_justify="left")
    for heading in ("#", "stage", "workers", "reason", "members", "from", "ended"):
        table.add_column(heading)
    for one in status.generations:
        ended = f"{one.ended_at:%H:%M:%S} {one.end_cause or ''}" if one.ended_at else ""
        row = (one.number, one.stage, one.world_size, one.reason, short_names(one.members))
        table.add_row(*map(str, row), f"{one.created_at:%H:%M:%S}", ended)
    return table
