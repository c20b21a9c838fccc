"""A finished run as `videotrain local` leaves it: pod folders with records, objects, and a status that fits them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import google_crc32c
import pytest

from videotrain.report.workdir import ObjectMissingError
from videotrain_api.storage.seals import FIELD, content

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
BUCKET = "64px/8f/1:1"
STORE = "s3://runs/demo"


class FolderObjects:
    """Objects in a dictionary."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}

    def get(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise ObjectMissingError(uri)
        return self.objects[uri]

    def download(self, uri: str, path: Path) -> None:
        path.write_bytes(self.get(uri))

    def put_sealed(self, uri: str, document) -> None:
        self.put_json(uri, {**document, FIELD: f"{google_crc32c.value(content(document)):08x}"})

    def put_json(self, uri: str, document) -> None:
        self.objects[uri] = json.dumps(document).encode()


def iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


@dataclass
class SyntheticRun:
    """Builds records, objects and status step by step, with a clock of its own."""

    workdir: Path
    objects: FolderObjects = field(default_factory=FolderObjects)
    now: datetime = START
    number: int = 0
    stages: list[dict] = field(default_factory=list)
    generations: list[dict] = field(default_factory=list)
    order: dict[str, list[dict]] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    spec: dict = field(default_factory=lambda: {"storage": {"uri": STORE}, "stages": []})
    buckets: dict[str, int] = field(default_factory=dict)
    phase: str = "Succeeded"

    def prefix(self, stage: str) -> str:
        return f"{STORE}/demo/{stage}"

    def pod(self, index: int) -> str:
        return f"demo-w{index}"

    def write(self, pod: str, local_rank: int, records: list[dict], *, torn: str = "") -> None:
        folder = self.workdir / "pods" / f"{pod}-{hashlib.sha256(pod.encode()).hexdigest()[:8]}" / "run/videotrain"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"records-{self.number}-{local_rank}.jsonl"
        with path.open("a") as file:
            for record in records:
                file.write(json.dumps(record) + "\n")
            file.write(torn)

    def stage(self, name: str, task: str, total: int | None = None) -> dict:
        stage = {
            "name": name,
            "task": task,
            "state": "Succeeded",
            "configHash": "0" * 16,
            "totalSteps": total,
            "startedAt": iso(self.now),
        }
        self.stages.append({k: v for k, v in stage.items() if v is not None})
        return self.stages[-1]

    def generation(
        self,
        stage: dict,
        reason: str,
        members: list[int],
        first: int,
        last: int,
        *,
        seconds: float = 0.5,
        start_seconds: float = 3.0,
        cause: str = "completed",
        lost_from: int | None = None,
        message: str = "",
        loss=None,
        torn: str = "",
        samples: int = 4,
        measured=None,
    ) -> dict:
        self.number += 1
        created, name = self.now, stage["name"]
        common = {"generation": self.number, "stage": name}
        ready = created + timedelta(seconds=start_seconds)
        started = {"kind": "started", "at": iso(ready), "worldSize": 2 * len(members), "resumedStep": first - 1}
        records = [{**common, **started, "totalSteps": stage.get("totalSteps") or 1}]
        self.now = ready
        for step in range(first, last + 1):
            begin, self.now = self.now, self.now + timedelta(seconds=seconds)
            records.append(
                {
                    **common,
                    "kind": "step",
                    "step": step,
                    "startedAt": iso(begin),
                    "finishedAt": iso(self.now),
                    "dataStallUs": 0,
                    "checkpointUs": 0,
                    "samples": samples,
                    "tokens": 128 * samples,
                    "modelFlops": 1e9,
                    **({"loss": loss(step)} if loss else {}),
                    **(measured(step) if measured else {}),
                }
            )
        if cause not in ("completed", "drained"):
            self.restarts[cause] = self.restarts.get(cause, 0) + 1
        for member in members:
            for local_rank in range(2):
                self.write(self.pod(member), local_rank, records, torn=torn if member else "")
        last_step_at = self.now
        self.now += timedelta(seconds=1)
        entry = {
            "number": self.number,
            "stage": name,
            "reason": reason,
            "message": message,
            "members": [self.pod(m) for m in members],
            "worldSize": 2 * len(members),
            "gpus": 2 * len(members),
            "createdAt": iso(created),
            "endedAt": iso(self.now),
            "endCause": cause,
            "progress": {
                "generation": self.number,
                "stage": name,
                "state": "failed" if cause not in ("completed", "drained") else "succeeded",
                "resumedStep": first - 1,
                "step": last,
                "totalSteps": stage.get("totalSteps"),
                "launchedAt": iso(created + timedelta(seconds=0.5)),
                "startedAt": iso(ready),
                "firstStepAt": iso(ready + timedelta(seconds=seconds)),
                "lastStepAt": iso(last_step_at),
                "endedAt": iso(self.now),
            },
        }
        if lost_from is not None:
            entry["lostFromStep"] = lost_from
        self.generations.append(entry)
        stage["step"] = last
        stage["finishedAt"] = iso(self.now)
        return entry

    def checkpoint(self, stage: dict, step: int, *, epoch_of=lambda step: 0, ids_of=lambda step: None) -> None:
        """Commit a checkpoint whose order has one line per step."""
        name = stage["name"]
        prefix = self.prefix(name)
        before = self.order.setdefault(name, [])
        first = len(before) + 1
        lines = [
            {
                "step": s,
                "epoch": epoch_of(s),
                "bucket": "64px/8f/1:1",
                "ids": ids_of(s) or [f"{name}-{s}-{n}" for n in range(4)],
            }
            for s in range(first, step + 1)
        ]
        before += lines
        uri = f"{prefix}/order/{first:08d}-{step:08d}.g{self.number:06d}.jsonl"
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.objects.objects[uri] = text
        segments = stage.setdefault("_segments", [])
        crc = f"{google_crc32c.value(text):08x}"
        segments.append({"uri": uri, "firstStep": first, "lastStep": step, "generation": self.number, "crc32c": crc})
        digest = hashlib.sha256("".join(f"{o['step']} {' '.join(o['ids'])}\n" for o in before).encode()).hexdigest()
        commit = f"{prefix}/checkpoints/step-{step:08d}/commit.json"
        document = {
            "run": "demo",
            "stage": name,
            "configHash": "0" * 16,
            "generation": self.number,
            "step": step,
            "worldSize": 4,
            "capturedAt": iso(self.now),
            "committedAt": iso(self.now),
            "files": [],
            "dataCursor": {},
            "order": list(segments),
            "orderSha256": digest,
            "samples": sum(len(o["ids"]) for o in before),
        }
        self.objects.put_json(commit, document)
        stage["savedStep"] = step
        record = {"kind": "checkpoint", "generation": self.number, "stage": name, "step": step, "uri": commit}
        times = {"capturedAt": iso(self.now), "committedAt": iso(self.now)}
        self.write(self.pod(0), 0, [{**record, **times, "bytes": 1_000_000, "stallUs": 120_000}])

    def run(self) -> dict:
        """The VideoTrainingRun as the cluster holds it."""
        held = sum(self.buckets.values())
        cost = {
            "currency": "USD",
            "totalMicros": sum(v // 1800 for v in self.buckets.values()),
            "total": "0.01",
            "heldGpuMicroseconds": held,
            "gpuMicrosecondsByBucket": self.buckets,
            "microsByBucket": {k: v // 1800 for k, v in self.buckets.items()},
            "goodputPercent": 61.5,
        }
        status = {
            "phase": self.phase,
            "stages": [{k: v for k, v in s.items() if not k.startswith("_")} for s in self.stages],
            "stage": self.stages[-1]["name"] if self.stages else None,
            "step": self.stages[-1].get("step", 0) if self.stages else 0,
            "generation": self.number,
            "generations": self.generations,
            "restarts": self.restarts,
            "cost": cost if self.buckets else None,
            "startTime": iso(START),
            "completionTime": iso(self.now) if self.phase == "Succeeded" else None,
        }
        return {
            "apiVersion": "videotrain.dev/v1alpha1",
            "kind": "VideoTrainingRun",
            "metadata": {"name": "demo", "namespace": "default", "uid": "u-1"},
            "spec": {
                **self.spec,
                "nodes": {"min": 1, "max": 2},
                "pool": {"gpusPerNode": 2, "pricePerGpuHour": "2.00", "currency": "USD"},
                "seed": 42,
            },
            "status": {k: v for k, v in status.items() if v is not None},
        }


@pytest.fixture
def synthetic(tmp_path):
    return SyntheticRun(tmp_path)


def decaying_loss(start: float, end: float, steps: int):
    """A loss that falls, with a reproducible wobble."""
    return lambda step: end + (start - end) * math.exp(-4 * step / steps) * (1 + 0.15 * math.sin(step * 12.9898))


@pytest.fixture
def finished(synthetic):
    """A whole demo: five stages, a killed node in the first training stage, and its return."""
    run = synthetic
    curate = run.stage("curate", "curate")
    run.generation(curate, "Started", [0, 1], 1, 6, samples=1)
    run.objects.put_sealed(f"{run.prefix('curate')}/drop-report.json", DROPS)
    encode = run.stage("encode", "encode")
    run.generation(encode, "StageStarted", [0, 1], 1, 8, samples=2)
    train = run.stage("train-64px", "train", 120)
    loss = decaying_loss(2.0, 0.4, 120)
    run.generation(
        train, "StageStarted", [0, 1], 1, 47, cause="infrastructure", lost_from=40, loss=loss, torn='{"kind":"st'
    )
    run.checkpoint(train, 40)
    run.generation(
        train, "NodeLost", [0], 41, 80, seconds=0.8, cause="drained", loss=loss, message="node n1 of demo-w1 is gone"
    )
    run.checkpoint(train, 80)
    run.generation(train, "Grow", [0, 1], 81, 120, loss=loss, message="demo-w1 is back")
    run.checkpoint(train, 120)
    sample = run.stage("sample", "sample")
    run.generation(sample, "StageStarted", [0], 1, 2, samples=1)
    run.objects.put_sealed(f"{run.prefix('sample')}/videos.json", VIDEOS)
    run.objects.objects[f"{run.prefix('sample')}/videos/0001.mp4"] = b"sampled bytes"
    run.objects.objects[f"{run.prefix('curate')}/clips/bikes.mp4"] = b"clip bytes"
    run.buckets = {"starting": 30_000_001, "productive": 120_123_456, "lost": 14_000_000, "restarting": 12_345_679}
    return run


DROPS = {
    "videos": 7,
    "clips": 5,
    "dropped": [
        {"source": "broken.mp4", "reason": "unreadable", "detail": "moov atom not found"},
        {"source": "strip.mp4", "reason": "aspect", "detail": "5.00, allowed 0.33 to 3"},
        {
            "source": "bikes.mp4",
            "span": [4.0, 8.0],
            "reason": "duplicate",
            "detail": "of 0.0-4.0, distance 2",
        },
    ],
    "counts": {"unreadable": 1, "aspect": 1, "duplicate": 1},
}
VIDEOS = {
    "videos": [
        {
            "number": 1,
            "uri": f"{STORE}/demo/sample/videos/0001.mp4",
            "prompt": 'bikes </script> pass by, "slowly" & <b>bold</b>',
            "condition": "i2v_head",
            "seed": 42,
            "width": 64,
            "height": 64,
            "frames": 8,
            "fps": 8,
            "settings": {"steps": 4},
            "referenceClip": f"{STORE}/demo/curate/clips/bikes.mp4",
        },
        {
            "number": 2,
            "uri": f"{STORE}/demo/sample/videos/0002.mp4",
            "prompt": "a rabbit",
            "condition": "t2v",
            "seed": 43,
            "width": 64,
            "height": 64,
            "frames": 8,
            "fps": 8,
            "settings": {},
        },
    ]
}
