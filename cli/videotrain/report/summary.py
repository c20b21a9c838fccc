"""W/summary.json: what a run did and what it cost, in numbers that add up."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import videotrain_api
from videotrain import __version__
from videotrain.files import replace_file
from videotrain.report.order_check import OrderCheck, check_order
from videotrain.report.recovery import Recovery, first_step, last_step, lost_steps, recoveries
from videotrain.report.speed import stage_speed
from videotrain.report.trouble import failing_log, failures_folder, trouble_of
from videotrain.report.workdir import (
    DamagedObjectError,
    GenerationRecords,
    ObjectMissingError,
    ObjectReader,
    RunRecords,
    read_records,
    read_sealed,
)
from videotrain.wording import GPU_NOTE
from videotrain_api.records import StepRecord
from videotrain_api.resource.status import CostStatus, GenerationStatus, RunStatus, StageStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import DropReport, SampledVideo, VideosIndex
from videotrain_api.vocabulary import Bucket, Phase

SUMMARY_FILE = "summary.json"
DROP_REPORT_FILE = "drop-report.json"
SAMPLES_FOLDER = "samples"


def write_summary(workdir: Path, run: Json, objects: ObjectReader) -> Path:
    """Write W/summary.json, W/drop-report.json and W/samples/*.mp4.

    Args:
        workdir: working directory of the run.
        run: the VideoTrainingRun with its status, as the cluster holds it.
        objects: the run's object store.

    Returns:
        Path of summary.json.
    """
    status = read_status(run.get("status")).status
    records = read_records(workdir)
    checks = [e for stage in status.stages if (e := _order_check(run, stage, objects))]
    damaged: list[str] = []
    summary = _head(run, status) | {
        "stages": [_stage(stage, status, records) for stage in status.stages],
        "restarts": status.restarts.model_dump(),
        "samples": _samples(checks),
        "trouble": _trouble(status, workdir),
        "failures": failures_folder(run, status),
        "logs": sorted(str(path.relative_to(workdir)) for path in (workdir / "logs").glob("*.log")),
        **_money(status.cost),
        **_recovery(recoveries(status, records)),
        "checkpoints": _checkpoints(status, records),
        "videos": fetch_videos(workdir, run, status, objects, damaged),
        "training_samples": _training_samples(workdir, run, records, objects, damaged),
        "drops": _drops(workdir, run, status, objects, damaged),
        "damaged": damaged,
        "records": {"torn_lines": records.torn_lines, "bad_lines": list(records.bad_lines)},
    }
    path = workdir / SUMMARY_FILE
    replace_file(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return path


def _head(run: Json, status: RunStatus) -> Json:
    metadata = run["metadata"]
    return {
        "run": metadata["name"],
        "namespace": metadata.get("namespace", "default"),
        "phase": status.phase,
        "note": GPU_NOTE,
        "versions": _versions(),
        "machine": _machine(),
        "started_at": _iso(status.start_time),
        "finished_at": _iso(status.completion_time),
        "duration_seconds": _between(status.start_time, status.completion_time),
        "seed": run["spec"].get("seed", 42),
    }


def _trouble(status: RunStatus, workdir: Path) -> Json | None:
    found = trouble_of(status)
    if found is None:
        return None
    log = failing_log(status, workdir) if status.phase == Phase.FAILED else None
    shown: Json = {"log": None, "tail": []}
    if log is not None:
        shown = {"log": str(log.path.relative_to(workdir)), "tail": list(log.lines)}
    return found._asdict() | shown


def _versions() -> Json:
    """Of this command, and of what trains where that is installed beside it."""
    found = {"videotrain": __version__, "api": getattr(videotrain_api, "__version__", __version__)}
    for package in ("videotrain-trainer", "torch", "deepspeed"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _machine() -> Json:
    """The one that wrote the summary: of a local run, the one that trained."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return {"system": system, "processors": os.cpu_count(), "memory_bytes": memory, "python": platform.python_version()}


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None


def _stage(stage: StageStatus, status: RunStatus, records: RunRecords) -> Json:
    kept = records.kept_steps(stage.name)
    generations = [g for g in status.generations if g.stage == stage.name]
    known = {g.number for g in generations}
    folded = [g.number for g in records.generations if g.stage == stage.name and g.number not in known]
    return {
        "name": stage.name,
        "task": stage.task,
        "state": stage.state,
        "steps": stage.step,
        "total_steps": stage.total_steps,
        "seconds": _between(stage.started_at, stage.finished_at),
        "generations": [_folded_generation(n, records) for n in folded]
        + [_generation(g, records) for g in generations],
        **_losses(kept),
        "samples": sum(r.samples for r in kept),
        "tokens": sum(r.tokens for r in kept),
        "model_flops": float(sum(r.model_flops for r in kept)),
        "speed": stage_speed(stage.name, records),
        "evaluation": stage.evaluation.model_dump() if stage.evaluation else None,
    }


def _generation(generation: GenerationStatus, records: RunRecords) -> Json:
    return {
        "number": generation.number,
        "world_size": generation.world_size,
        "reason": generation.reason,
        "message": generation.message,
        "members": list(generation.members),
        "first_step": first_step(generation, records),
        "last_step": last_step(generation, records),
        "lost_steps": lost_steps(generation, records),
        "attention": generation.progress.attention if generation.progress else None,
        "start_seconds": _start_seconds(records.generation(generation.number)),
        "end_cause": generation.end_cause,
        "created_at": _iso(generation.created_at),
        "ended_at": _iso(generation.ended_at),
    }


def _start_seconds(left: GenerationRecords | None) -> dict[str, float]:
    """Seconds of each phase from the roster to the end of the first step; empty if no worker was ready."""
    if left is None or left.started is None:
        return {}
    seconds = {phase: microseconds / 1e6 for phase, microseconds in left.started.phases_us.items()}
    first = {"firstStep": (left.steps[0].finished_at - left.started.at).total_seconds()} if left.steps else {}
    return seconds | first


def _folded_generation(number: int, records: RunRecords) -> Json:
    """A generation that the status no longer lists (it keeps 16), from what its workers wrote."""
    left = records.generation(number)
    assert left is not None
    steps = left.steps
    return {
        "number": number,
        "world_size": left.started.world_size if left.started else None,
        "reason": "Unknown",
        "message": "older than the status remembers; taken from the workers' records",
        "members": list(left.pods),
        "first_step": steps[0].step if steps else None,
        "last_step": steps[-1].step if steps else None,
        "lost_steps": None,
        "attention": left.started.attention if left.started else None,
        "start_seconds": _start_seconds(left),
        "end_cause": None,
        "created_at": _iso(left.started.at if left.started else None),
        "ended_at": _iso(max((r.at for _, r in left.exits), default=None)),
    }


def _losses(steps: tuple[StepRecord, ...]) -> Json:
    losses = [r.loss for r in steps if r.loss is not None]
    tenth = max(1, len(losses) // 10)
    return {
        "final_loss": losses[-1] if losses else None,
        "first_tenth_loss": sum(losses[:tenth]) / tenth if losses else None,
        "last_tenth_loss": sum(losses[-tenth:]) / tenth if losses else None,
    }


def _order_check(run: Json, stage: StageStatus, objects: ObjectReader) -> OrderCheck | None:
    if stage.task not in {"train", "autoencoder"} or stage.saved_step == 0:
        return None
    commit = layout.checkpoint_commit(_prefix(run, stage.name), stage.saved_step)
    try:
        return check_order(objects, commit)
    except ObjectMissingError as error:
        return OrderCheck(stage.name, stage.saved_step, 0, 0, 0, "", [f"no proof of the order: {error}"])


def _prefix(run: Json, stage: str) -> str:
    return layout.stage_prefix(run["spec"]["storage"]["uri"], run["metadata"]["name"], stage)


def _samples(checks: list[OrderCheck]) -> Json:
    combined = hashlib.sha256()
    for one in checks:
        combined.update(f"{one.stage} {one.order_sha256}\n".encode())
    fields = ("consumed", "repeated", "lost")
    return {field: sum(getattr(one, field) for one in checks) for field in fields} | {
        "order_sha256": combined.hexdigest() if checks else None,
        "stages": [
            {"name": e.stage, "step": e.step, **{f: getattr(e, f) for f in (*fields, "order_sha256", "sources")}}
            for e in checks
        ],
        "problems": [f"{e.stage}: {problem}" for e in checks for problem in e.problems],
    }


def _money(cost: CostStatus | None) -> Json:
    """Bucket tables; the seconds are decimal spellings of integer microseconds, so their decimal sum is exact."""
    cost = cost or CostStatus(currency="")
    held = {b.value: cost.gpu_microseconds_by_bucket.get(b.value, 0) for b in Bucket}
    held["held"] = cost.held_gpu_microseconds
    return {
        "gpu_seconds": {name: micros / 1_000_000 for name, micros in held.items()},
        "gpu_microseconds": held,
        "cost": {
            "currency": cost.currency,
            "total_micros": cost.total_micros,
            "total": cost.total,
            "stages": [stage.model_dump() for stage in cost.stages],
            "generations": [generation.model_dump() for generation in cost.generations],
            "waste_micros_by_cause": dict(cost.waste_micros_by_cause),
            "by_bucket": {b.value: cost.micros_by_bucket.get(b.value, 0) for b in Bucket},
            "goodput_percent": cost.goodput_percent,
            "estimated": cost.estimated,
            "forecast": cost.forecast,
            "forecast_low": cost.forecast_low,
            "forecast_high": cost.forecast_high,
            "expected_stages": [stage.model_dump() for stage in cost.expected_stages],
        },
    }


def _recovery(found: list[Recovery]) -> Json:
    details = [
        {
            "generation": r.generation,
            "stage": r.stage,
            "cause": r.cause,
            "failed_at": _iso(r.failed_at),
            "first_step_at": _iso(r.first_step_at),
            "seconds": r.seconds,
            "phases": r.phases(),
            "lost_steps": r.lost_steps,
            "gpu_seconds": round(r.gpu_seconds, 6),
        }
        for r in found
    ]
    return {"recovery_seconds": [r.seconds for r in found if r.seconds is not None], "recoveries": details}


def _checkpoints(status: RunStatus, records: RunRecords) -> list[Json]:
    found: dict[str, Json] = {
        r.uri: {
            "stage": r.stage,
            "step": r.step,
            "generation": r.generation,
            "uri": r.uri,
            "bytes": r.bytes,
            "committed_at": _iso(r.committed_at),
            "stall_seconds": r.stall_us / 1_000_000,
        }
        for r in records.checkpoints
    }
    for generation in status.generations:  # of pods whose folder is gone
        for point in generation.progress.saved if generation.progress else []:
            entry = {"stage": generation.stage, "step": point.step, "generation": generation.number, "uri": point.uri}
            found.setdefault(point.uri, entry | {"committed_at": _iso(point.committed_at)})
    return sorted(found.values(), key=lambda c: str(c["committed_at"]))


def fetch_videos(workdir: Path, run: Json, status: RunStatus, objects: ObjectReader, damaged: list[str]) -> list[Json]:
    """Bring the videos of all sample stages to workdir/samples/; what is told of each of them.

    Args:
        workdir: a folder.
        run: the VideoTrainingRun.
        status: its status.
        objects: its object store.
        damaged: takes a note for each index that cannot be trusted.
    """
    found: list[Json] = []
    for stage in (s for s in status.stages if s.task == "sample"):
        index = _document(objects, layout.videos_index(_prefix(run, stage.name)), damaged)
        for video in VideosIndex.from_wire(index).videos if index else []:
            found.append(_video(workdir, stage.name, video, objects))
    return found


def _training_samples(
    workdir: Path, run: Json, records: RunRecords, objects: ObjectReader, damaged: list[str]
) -> list[Json]:
    """What train stages drew of fixed prompts between their steps, in order of step."""
    found: list[Json] = []
    for drawn in records.samples:
        prefix = layout.training_samples(_prefix(run, drawn.stage), drawn.step)
        index = _document(objects, layout.videos_index(prefix), damaged)
        for video in VideosIndex.from_wire(index).videos if index else []:
            name = f"{drawn.stage}-step-{drawn.step:08d}-{video.number:04d}.mp4"
            facts = {"stage": drawn.stage, "step": drawn.step, "seconds": drawn.duration_us / 1e6}
            fields = {field: getattr(video, field) for field in ("number", "prompt", "seed", "condition")}
            found.append(facts | fields | {"file": _fetch(workdir, name, video.uri, objects)})
    return found


def _video(workdir: Path, stage: str, video: SampledVideo, objects: ObjectReader) -> Json:
    name = f"{stage}-{video.number:04d}"
    return video.model_dump(mode="json") | {
        "stage": stage,
        "file": _fetch(workdir, f"{name}.mp4", video.uri, objects),
        "reference_file": _fetch(workdir, f"{name}-clip.mp4", video.reference_clip, objects),
    }


def _fetch(workdir: Path, name: str, uri: str | None, objects: ObjectReader) -> str | None:
    if uri is None:
        return None
    (workdir / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        objects.download(uri, workdir / SAMPLES_FOLDER / name)
    except ObjectMissingError:
        return None
    return f"{SAMPLES_FOLDER}/{name}"


def _drops(workdir: Path, run: Json, status: RunStatus, objects: ObjectReader, damaged: list[str]) -> Json | None:
    reports = []
    for stage in (s for s in status.stages if s.task == "curate"):
        if (document := _document(objects, layout.drop_report(_prefix(run, stage.name)), damaged)) is not None:
            reports.append(DropReport.from_wire(document))
    if not reports:
        return None
    merged = DropReport(
        videos=sum(r.videos for r in reports),
        clips=sum(r.clips for r in reports),
        dropped=[item for r in reports for item in r.dropped],
        counts={k: sum(r.counts.get(k, 0) for r in reports) for r in reports for k in r.counts},
    )
    text = json.dumps(merged.to_wire(), indent=2, ensure_ascii=False)
    (workdir / DROP_REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return {"videos": merged.videos, "clips": merged.clips, "dropped": len(merged.dropped), "counts": merged.counts}


def _document(objects: ObjectReader, uri: str, damaged: list[str]) -> Json | None:
    """None if there is none, or, with a note in `damaged`, if it cannot be trusted."""
    try:
        return read_sealed(objects, uri)
    except DamagedObjectError as error:
        damaged.append(str(error))
        return None
    except ObjectMissingError:
        return None
