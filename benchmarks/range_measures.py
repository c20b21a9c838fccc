"""The rows of ranges.yaml, measured: each one is a ratio to a peer that takes turns with ours in the same process.

A ratio means the same on a slow machine, a busy one and one of another maker, as far as anything does. Processor time
counts where nothing waits; of repeated rounds the middle counts, and check_ranges.py takes the best of some tries.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
PASSES, ROUNDS, STARTS, STEPS = 200, 5, 5, 300
INDEX_ROWS = 2_600_000


def processor_seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(ours: Callable[[], Any], peer: Callable[[], Any], times: int) -> tuple[list[float], list[float]]:
    """Seconds of processor time of so many calls of each, ascending."""
    ours(), peer()
    gc.collect()
    gc.freeze()  # what was loaded at the start is never garbage; a long-lived process does the same
    pairs = [(processor_seconds(ours), processor_seconds(peer)) for _ in range(times)]
    gc.unfreeze()
    mine, others = zip(*pairs, strict=True)
    return sorted(mine), sorted(others)


def percentile(ascending: list[float], percent: int) -> float:
    return ascending[min(len(ascending) - 1, len(ascending) * percent // 100)]


class PlannerPass:
    """A pass of the planner, beside the JSON of the same status there and back; a turn tells each percentile once."""

    def __init__(self, pods: int, *, roster: bool = False) -> None:
        self._pods, self._roster = pods, roster
        self._untold: dict[int, float] = {}

    def ratio(self, percent: int) -> float:
        if percent not in self._untold:
            self._measure()
        return self._untold.pop(percent)

    def _measure(self) -> None:
        bench = _planner_bench(self._pods)
        mine, others = in_turns(bench.roster_pass if self._roster else bench.steady_pass, bench.json_only, PASSES)
        self._untold = {percent: percentile(mine, percent) / percentile(others, percent) for percent in (50, 99)}


@functools.cache
def _planner_bench(pods: int) -> Any:
    from planner_pass import Bench

    return Bench(pods)


def order_step() -> float:
    """The order of one step among 100 million clips, beside numpy's shuffling of as many clips as a step takes."""
    import numpy as np
    from order_planning import BATCH, MICRO_BATCHES, hundred_million

    plan = hundred_million()
    state, generator = plan.start(), np.random.default_rng(1)

    def step() -> None:
        nonlocal state
        _ = plan.step(state).micro_batches[0]
        state = plan.advance(state)

    mine, others = in_turns(step, lambda: generator.permutation(MICRO_BATCHES * BATCH), STEPS)
    return statistics.median(mine) / statistics.median(others)


def child_seconds(command: list[str]) -> float:
    """Processor time of a command until it ends."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def start_up(ours: list[str], peer: str) -> float:
    """A command until it ends, beside a Python that imports what it cannot do without."""
    pairs = [
        (child_seconds([sys.executable, "-m", *ours]), child_seconds([sys.executable, "-c", f"import {peer}"]))
        for _ in range(STARTS)
    ]
    mine, others = zip(*pairs, strict=True)
    return min(mine) / min(others)


def closure_bytes(ours: str, peer: str) -> float:
    """Installed size of a distribution with all that it brings, beside another one with all that that brings."""
    from support.closure import closure, installed_bytes

    return installed_bytes(closure(ours)) / installed_bytes(closure(peer))


def train_step(peer: str) -> float:
    """A training step of the MMDiT on the CPU, beside diffusers' model that computes the same."""
    from train_step_cpu import measure

    return float(measure(ROUNDS, [peer])["ratio_to_peer"][peer])


@functools.cache
def _engine_bytes() -> dict[str, float]:
    from engine_traffic import measure, peer_name

    found = measure(("zero2", "fsdp2"), (2,), ("float32",))
    peer = found[peer_name("zero2", "float32")]["bytes_per_parameter"]
    return {name: found[name]["bytes_per_parameter"] / peer for name in ("zero2", "fsdp2")}


@functools.cache
def _generated_index() -> str:
    """An index of 2.6 million rows in files, for as long as this process lives."""
    from sample_index import write

    from videotrain_api.resource.trainrun import Storage
    from videotrain_trainer.storage import ObjectStore

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    uri = Path(folder.name).as_uri()
    write(ObjectStore.for_storage(Storage(uri="s3://unused")), uri, INDEX_ROWS)
    return uri


def index_open() -> float:
    """From an index on disk to the places of the first step, beside reading its list of files."""
    from sample_index import first_step

    uri = _generated_index()
    listed = Path(uri.removeprefix("file://")) / "index" / "index.json"
    mine, others = in_turns(lambda: first_step(uri, None), lambda: json.loads(listed.read_bytes()), ROUNDS * 3)
    return statistics.median(mine) / statistics.median(others)


def index_select() -> float:
    """The half of an index that has a score, beside the checksums of the bytes that have to be read for it."""
    import google_crc32c
    from sample_index import first_step

    uri = _generated_index()
    folder = Path(uri.removeprefix("file://")) / "index"
    data = [path.read_bytes() for path in sorted(folder.glob("*.idx"))]
    mine, others = in_turns(
        lambda: first_step(uri, 0.5), lambda: [google_crc32c.value(content) for content in data], ROUNDS
    )
    return statistics.median(mine) / statistics.median(others)


def stalled_requests() -> float:
    """The 99th percentile of the wait for a sample when 1 of 100 requests stalls, replayed, beside that without."""
    from support.request_replay import percentile, waits

    stalled, unharmed = ([each for seed in range(4) for each in waits(share, 4000, seed)[0]] for share in (0.01, 0.0))
    return percentile(stalled, 99) / percentile(unharmed, 99)


def stream_rate() -> float:
    """Samples per second from a real S3 server, beside boto3 with as many threads."""
    from stream_s3 import measure_here

    found = measure_here(ROUNDS)
    return found["ours"]["samples_per_second_median"] / found["peer"]["samples_per_second_median"]


def recovery() -> float:
    """From a killed node to the first step of the next generation, beside a cold torchrun of the same world."""
    from recovery import measure

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), 1)
    return seconds["nodeLost"]["total"] / seconds["startColdTorchrun"]["firstStep"]


PLAN = ["videotrain", "plan", "manifests/examples/open-sora-2.yaml"]
STEADY = {pods: PlannerPass(pods) for pods in (8, 128, 1024)}
MEASURES: dict[str, Callable[[], float]] = {
    **{f"planner-{pods}-p{p}": functools.partial(STEADY[pods].ratio, p) for pods in STEADY for p in (50, 99)},
    "planner-1024-roster": functools.partial(PlannerPass(1024, roster=True).ratio, 50),
    "order-step": order_step,
    "start-help": functools.partial(start_up, ["videotrain", "--help"], "argparse"),
    "start-plan": functools.partial(start_up, PLAN, "argparse, pydantic.main, rich.console, yaml"),
    "operator-bytes": functools.partial(closure_bytes, "videotrain-operator", "kubernetes"),
    "train-step-flux": functools.partial(train_step, "diffusers flux"),
    "train-step-hunyuan-video": functools.partial(train_step, "diffusers hunyuan-video"),
    "engine-bytes-zero2": lambda: _engine_bytes()["zero2"],
    "engine-bytes-fsdp2": lambda: _engine_bytes()["fsdp2"],
    "index-open": index_open,
    "index-select": index_select,
    "stalled-requests": stalled_requests,
    "stream-rate": stream_rate,
    "recovery": recovery,
}
"""By row of ranges.yaml."""
