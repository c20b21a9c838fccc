"""What it takes to open an encoded set of any size: real index files, a bucket table, an order, and the first step.

Rows are files as encode stages write them, of made-up clips of 13 samples in as many buckets; no shard is behind them,
so a step here is its places in the index, uids included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from videotrain_api.resource.stages import Bucket, LearningRatePiece, Optimizer, ParallelLayout, TrainTask
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.data.index_writer import BucketColumns, publish_index, write_bucket
from videotrain_trainer.data.manifest import SCORES
from videotrain_trainer.data.sample_index import open_index
from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan, StepOrder
from videotrain_trainer.data.stage_samples import Group, stage_samples
from videotrain_trainer.storage import ObjectStore

PER_CLIP, MICRO_BATCHES, BATCH = 13, 8, 4
SHARD_SAMPLES = 500
ROWS = [Bucket(resolution="256px", frames=4 * n + 1, batch_size=BATCH) for n in range(1, PER_CLIP + 1)]


def names() -> list[str]:
    return [f"256px/{row.frames}f" for row in ROWS]


def buckets(clips: int, seed: int = 0) -> Iterator[BucketColumns]:
    """Every clip has a sample in one window of each row's bucket."""
    draw = np.random.default_rng(seed)
    identities = draw.integers(0, 2**64, clips, np.uint64).astype(">u8")
    identities.sort()
    clip = np.zeros((clips, 10), np.uint8)
    clip[:, :8] = identities.view(np.uint8).reshape(clips, 8)
    order = np.arange(clips)
    for number, row in enumerate(ROWS):
        yield BucketColumns(
            bucket=f"256px/{row.frames}f/16:9",
            latent=(row.frames // 4 + 1, 24, 42),
            clip=clip.view("V10")[:, 0],
            suffix=np.zeros(clips, np.uint8),
            suffixes=[f".{number:04x}.{row.frames}f0"],
            uid=None,
            kind=np.zeros(clips, np.uint8),
            kinds=[(f"256px/{row.frames}f", [f"256px/{row.frames}f"], None)],
            shard=order // SHARD_SAMPLES,
            shards=[f"shards/256px-{row.frames}f-16x9-{n:05d}-00000000.tar" for n in range(-(-clips // SHARD_SAMPLES))],
            offset=(order % SHARD_SAMPLES) * 1_000_448 + 512,
            length=np.full(clips, 999_424),
            crc32c=draw.integers(0, 2**32, clips, np.uint64),
            text_tokens=draw.integers(20, 96, clips, np.uint16),
            scores={name: draw.random(clips) for name in SCORES[:1]},
        )


def write(store: ObjectStore, uri: str, rows: int) -> dict[str, Any]:
    began = time.perf_counter()
    infos = [write_bucket(store, uri, columns) for columns in buckets(-(-rows // PER_CLIP))]
    info = publish_index(store, uri, infos, None)
    samples, data = sum(found.samples for found in info.buckets), sum(found.file.size for found in info.buckets)
    return {"rows": samples, "bytes": data, "bytes_per_row": round(data / samples, 1), "seconds": since(began)}


def since(began: float) -> float:
    return round(time.perf_counter() - began, 3)


def memory(field: str) -> int:
    """A field of this process's memory, bytes: Pss counts a page that n processes map as an n-th."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{field}:"))


def opened(uri: str, select: float | None, kept: Path | None) -> tuple[tuple[Group, ...], OrderPlan]:
    """What a stage trains on, and in which order.

    Args:
        uri: prefix of the set.
        select: the least score of its clips.
        kept: folder for what was chosen by it.
    """
    optimizer = Optimizer(learning_rate=[LearningRatePiece(value=1e-4)])
    bounds = [] if select is None else [{"score": SCORES[0], "min": select}]
    task = TrainTask(steps=1, buckets=ROWS, optimizer=optimizer, parallel=ParallelLayout(), select=bounds)
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    samples = stage_samples(open_index(store, uri, None), task, 1, 512, kept)
    order = tuple(OrderBucket(group.name, group.size, BATCH) for group in samples.groups)
    digest = sum(group.digest for group in samples.groups) % 2**64
    return samples.groups, OrderPlan(order, 1, MICRO_BATCHES, f"{digest:016x}")


def read_places(groups: tuple[Group, ...], step: StepOrder) -> None:
    """The rows of a step's samples."""
    group = groups[step.bucket_index]
    for micro_batch in step.micro_batches:
        assert all(group.bucket.place(group.number(index)).uid for index in micro_batch)


def first_step(uri: str, select: float | None) -> None:
    """Open, plan, and find the samples of the first step; keep nothing."""
    groups, plan = opened(uri, select, None)
    read_places(groups, plan.step(plan.start()))


def open_once(uri: str, steps: int, select: float | None) -> dict[str, Any]:
    """In a process of its own: open, plan, first step, more steps."""
    before, private = memory("Pss"), memory("Pss_Anon")
    began, cpu = time.perf_counter(), time.process_time()
    groups, plan = opened(uri, select, Path(uri.removeprefix("file://")) / "cache")
    state, took, cpu, seconds = plan.start(), since(began), time.process_time() - cpu, []
    for _ in range(steps):
        begun = time.perf_counter()
        read_places(groups, plan.step(state))
        state = plan.advance(state)
        seconds.append(time.perf_counter() - begun)
    return {
        "rows": sum(group.size for group in groups),
        "open_seconds": took,
        "open_cpu_seconds": round(cpu, 3),
        "first_step_seconds": round(seconds[0], 4),
        "step_ms_p50": round(1e3 * sorted(seconds)[len(seconds) // 2], 3),
        "places_per_step": MICRO_BATCHES * BATCH,
        "memory_bytes": memory("Pss") - before,
        "of_it_private_bytes": memory("Pss_Anon") - private,
    }


def in_process(uri: str, steps: int, select: float | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--open", uri, "--steps", str(steps)]
    command += [] if select is None else ["--select", str(select)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=140_000_000)
    parser.add_argument("--folder", type=Path, help="for the index; 35 bytes a row")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--select", type=float, help="train on clips whose first score is at least so much")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="result file")
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(open_once(arguments.open, arguments.steps, arguments.select)))
        return
    uri, load = arguments.folder.resolve().as_uri(), round(os.getloadavg()[0], 1)
    written = write(ObjectStore.for_storage(Storage(uri="s3://unused")), uri, arguments.rows)
    result = {
        "benchmark": "sample_index",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load_before": load},
        "setting": {"buckets": PER_CLIP, "batch": BATCH, "micro_batches": MICRO_BATCHES, "steps": arguments.steps},
        "goal": {"open_seconds": 2.0, "node_bytes": 6_000_000_000},
        "written": written,
        "first_process": in_process(uri, arguments.steps, None),
        "restart": in_process(uri, arguments.steps, None),
        "with_a_selection": in_process(uri, arguments.steps, 0.5),
        "restart_with_a_selection": in_process(uri, arguments.steps, 0.5),
    }
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
