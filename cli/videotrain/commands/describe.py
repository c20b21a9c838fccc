"""`videotrain describe` and `videotrain events`: a run with its pods and what was told about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from videotrain.commands.cluster_runs import ClusterChoice, ask, find_run
from videotrain.commands.get import local_runs, print_run
from videotrain.commands.plan_tables import new_table
from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.report.trouble import failures_folder
from videotrain.wording import duration
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_RUN
from videotrain_operator.kube.client import KubeClient


class Surroundings(NamedTuple):
    """A run and what belongs to it."""

    run: Json
    pods: Sequence[Json]
    events: Sequence[Json]
    """About the run, oldest first."""


def describe(name: str | None, where: ClusterChoice, workdir: Path | None) -> int:
    """Print all that is known of a run.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: the run is not there, or the cluster cannot be asked.
    """
    found = _surroundings(name, where, workdir)
    console = _console()
    print_run(console, found.run)
    if found.pods:
        table = new_table("Pods", ("name", "node", "phase", "reason"), ("restarts",))
        for pod in found.pods:
            status = pod.get("status", {})
            restarts = sum(each.get("restartCount", 0) for each in status.get("containerStatuses", ()))
            node, phase = pod["spec"].get("nodeName", ""), status.get("phase", "Pending")
            table.add_row(pod["metadata"]["name"], node, phase, status.get("reason", ""), str(restarts))
        console.print(table)
    _print_stacks(console, found.run)
    folder = failures_folder(found.run, read_status(found.run.get("status")).status)
    if folder is not None:
        line = f"Log tails and stacks of failed generations: {folder} (videotrain logs --failed)"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_event_table(found.events))
    return 0


def _print_stacks(console: Console, run: Json) -> None:
    """Where workers stood when a generation hung, of the newest that did."""
    for one in reversed(read_status(run.get("status")).status.generations):
        if one.progress is not None and one.progress.stacks:
            console.print(f"Stacks of generation {one.number}, which hung:", style="bold")
            console.print(one.progress.stacks, markup=False, highlight=False, soft_wrap=True)
            return


def print_events(name: str | None, where: ClusterChoice, workdir: Path | None, output: Literal["table", "json"]) -> int:
    """Print what was told about a run, oldest first.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: the run is not there, or the cluster cannot be asked.
    """
    events = _surroundings(name, where, workdir).events
    if output == "json":
        sys.stdout.write(json.dumps(list(events), indent=2, ensure_ascii=False) + "\n")
    else:
        _console().print(_event_table(events))
    return 0


def _surroundings(name: str | None, where: ClusterChoice, workdir: Path | None) -> Surroundings:
    if workdir is not None:
        run, database = local_runs(workdir)[0], workdir / DATABASE_FILE
        events = [event for event in read_objects(database, "Event") if _is_about(event, run)]
        return Surroundings(run, read_objects(database, "Pod"), sorted(events, key=_last_seen))

    async def read(client: KubeClient) -> Surroundings:
        run = await find_run(client, where, str(name))
        head = run["metadata"]
        pods = await client.list("Pod", head["namespace"], f"{LABEL_RUN}={head['name']}")
        about = f"involvedObject.uid={head['uid']}"
        events = await client.list("Event", head["namespace"], fields=about)
        return Surroundings(run, pods, sorted(events, key=_last_seen))

    return ask(where, read)


def _is_about(event: Json, run: Json) -> bool:
    return bool(event["involvedObject"].get("uid") == run["metadata"].get("uid"))


def _last_seen(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def _event_table(events: Sequence[Json]) -> Table:
    table = Table(title="Events" if events else "No events (an API server forgets them after an hour)")
    table.title_justify = "left"
    for heading in ("last seen", "type", "reason", "times", "message"):
        table.add_column(heading, justify="right" if heading == "times" else "left")
    now = datetime.now(UTC)
    for event in events:
        ago = duration(max(0.0, (now - datetime.fromisoformat(_last_seen(event))).total_seconds()))
        times = str(event.get("count") or 1)
        table.add_row(f"{ago} ago", event["type"], event["reason"], times, event.get("message", ""))
    return table


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=160)
