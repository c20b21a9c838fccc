"""How long one planner pass takes, by number of pods: a steady pass, and the pass that publishes a new roster.

    python benchmarks/planner_pass.py [--passes 200]

Writes benchmarks/results/planner_pass-<date>.json. The goal is a p99 under 20 ms at 1,024 pods.
The peer in the same run: parsing and writing the same status as JSON, with members by name, which any operator has to
do. What is kept is the ratio to it: rows planner-* of ranges.yaml.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videotrain_api.frozen_config import config_data
from videotrain_api.records import AgentProgress, GenerationProgress, Roster, RosterMember
from videotrain_api.resource.name_ranges import spelled_out
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.signing import KEY_BYTES
from videotrain_api.vocabulary import FROZEN_SPEC_KEY, ROSTER_KEY
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.plan import plan

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
RESULTS = Path(__file__).parent / "results"


def manifest(pods: int) -> dict[str, Any]:
    """A run of so many H200 nodes."""
    train = {
        "steps": 100_000,
        "buckets": [{"resolution": "256px", "frames": 129, "batchSize": 1}],
        "optimizer": {"learningRate": [{"value": 1e-4}]},
        "parallel": {"microBatchesPerStep": pods * 8},
    }
    return {
        "apiVersion": "videotrain.dev/v1alpha1",
        "kind": "VideoTrainingRun",
        "metadata": {"name": "bench", "uid": UID, "generation": 1},
        "spec": {
            "model": {"preset": "mmdit-11b"},
            "autoencoder": {"preset": "hunyuan-vae", "weights": "s3://bucket/vae.safetensors"},
            "dataset": {"latents": "s3://bucket/latents"},
            "storage": {"uri": "s3://bucket/runs"},
            "nodes": {"min": max(1, pods // 2), "max": pods},
            "pool": {"gpusPerNode": 8, "pricePerGpuHour": "2.00"},
            "budget": {"maxCost": "10000000"},
            "elasticity": {"waitForMaxSeconds": 0, "minGainSeconds": 0},
            "stages": [{"name": "train", "task": "train", "train": train}],
        },
    }


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def worker(index: int) -> PodView:
    """A pod that runs."""
    return PodView(
        name=f"bench-w{index}",
        uid=f"uid-{index}",
        index=index,
        phase="Running",
        created_at=at(-9),
        bound_at=at(-8),
        started_at=at(-index % 7 - 1),
        node=f"node-{index}",
        address=f"10.1.{index // 250}.{index % 250 + 1}",
        running=True,
        gpus=8,
        price="2.00 USD",
    )


def answer(index: int, generation: int, step: int, now: float) -> AgentProgress:
    """What an agent tells while steps go on."""
    facts = GenerationProgress(
        generation=generation,
        stage="train",
        state="running",
        world_size=8,
        resumed_step=0,
        total_steps=100_000,
        step=step,
        launched_at=at(1),
        started_at=at(30),
        first_step_at=at(40),
        last_step_at=at(40 + step),
    )
    return AgentProgress(
        pod=f"bench-w{index}", pod_uid=f"uid-{index}", at=at(now), roster_generation=generation, current=facts
    )


class Bench:
    """A run of so many pods, steady in its sixteenth generation."""

    def __init__(self, pods: int) -> None:
        body = manifest(pods)
        run = VideoTrainingRun.from_wire(body)
        data = config_data(run)
        observed = Observed(
            pods=tuple(worker(i) for i in range(pods)),
            signing_key=bytes(KEY_BYTES),
            frozen_spec=json.loads(data[FROZEN_SPEC_KEY]),
        )
        first = plan(run, replace(observed, pods=()), at(-10))
        name = first.status.config_map or ""
        status, ledger = first.status, None
        self.observed = replace(observed, config_maps=frozenset({name}))
        for number in range(1, 17):
            now = 60.0 * number
            decided = plan(self._run(body, status), replace(self.observed, ledger=ledger), at(now))
            status, ledger = self._applied(decided, ledger, number)
        self.body, self.ledger = body, ledger
        self.running = status
        self.now = 60.0 * 17
        leader = answer(0, status.generation, 900, self.now)
        self.steady = replace(self.observed, ledger=ledger, agents={"bench-w0": leader})
        settled = plan(self._run(body, status), self.steady, at(self.now))
        for item in settled.apply:
            self.steady = replace(self.steady, ledger=json.loads(item["data"]["ledger.json"]))
        assert status.generation == 16, "a pass made no generation"
        assert settled.status.phase == "Running", "steady passes are over a run that goes on"
        last = status.generations[-1].model_copy(update={"end_cause": "infrastructure", "end_reason": "NodeLost"})
        self.lost = status.model_copy(update={"generations": [*status.generations[:-1], last]})

    def _run(self, body: dict[str, Any], status: RunStatus) -> VideoTrainingRun:
        return VideoTrainingRun.from_wire(body | {"status": status.to_wire()})

    def _applied(self, decided: Any, ledger: Any, number: int) -> tuple[RunStatus, Any]:
        """The cluster after a plan; all generations but the last end at once, by a fault that nothing waits after."""
        for item in decided.apply:
            if item["metadata"]["name"].endswith("-ledger"):
                ledger = json.loads(item["data"]["ledger.json"])
        after: RunStatus = decided.status
        live = after.generations[-1]
        members = [RosterMember(pod=p.name, address=p.address or "", uid=p.uid) for p in self.observed.pods]
        roster = Roster(
            run_uid=UID,
            generation=live.number,
            action="run",
            stage="train",
            config_hash=after.stages[0].config_hash,
            reason=live.reason,
            members=members,
            port=29400,
            processes_per_node=8,
            created_at=live.created_at,
        )
        self.observed = replace(self.observed, roster=roster, roster_resource_version="7")
        if number < 16:
            facts = answer(0, live.number, 10, 0).current
            ended = live.model_copy(update={"end_cause": "infrastructure", "end_reason": "NodeLost", "progress": facts})
            after = after.model_copy(update={"generations": [*after.generations[:-1], ended]})
        return after, ledger

    def steady_pass(self) -> None:
        """Steps go on: parse, plan, write."""
        decided = plan(self._run(self.body, self.running), self.steady, at(self.now))
        assert not [item for item in decided.apply if item["kind"] == "Pod"]

    def roster_pass(self) -> None:
        """A new generation of every pod."""
        decided = plan(self._run(self.body, self.lost), self.steady, at(self.now))
        assert [item for item in decided.apply if ROSTER_KEY in item.get("data", {})]

    def json_only(self) -> None:
        """The peer: nothing but the JSON of the status, there and back, with the name of every member."""
        status = self.running.to_wire()
        named = [item | {"members": spelled_out(item["members"])} for item in status["generations"]]
        json.loads(json.dumps(status | {"generations": named}))


def measure(works: dict[str, Callable[[], None]], passes: int) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time of so many calls of each, in turns: the planner waits for nothing, and whatever
    else the machine does meets all of them alike.
    """
    for work in works.values():
        work()
    gc.collect()
    gc.freeze()  # what was loaded at the start is never garbage; a long-lived operator does the same
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(passes):
        for name, work in works.items():
            begun = time.process_time()
            work()
            times[name].append((time.process_time() - begun) * 1000)
    return {name: _summary(sorted(found)) for name, found in times.items()}


def _summary(times: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(times), 3),
        "p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))], 3),
        "max_ms": round(times[-1], 3),
    }


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    options = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {}
    load = round(os.getloadavg()[0], 1)
    for pods in (8, 128, 1024):
        bench = Bench(pods)
        works = {"steady": bench.steady_pass, "new_roster": bench.roster_pass, "peer_json_of_status": bench.json_only}
        status_bytes = len(json.dumps(bench.running.to_wire()))
        cases[str(pods)] = {**measure(works, options.passes), "status_bytes": status_bytes}
    result = {
        "benchmark": "planner_pass",
        "date": options.date,
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load_before": load,
        },
        "versions": {"python": platform.python_version(), "pydantic": version("pydantic")},
        "goal": {"pods": 1024, "p99_ms": 20},
        "passes": options.passes,
        "clock": "processor time, cases in turns; start-up objects are frozen out of garbage collection",
        "pods": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"planner_pass-{options.date}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(cases, indent=2))
    print(path)
    return 0 if cases["1024"]["steady"]["p99_ms"] < 20 else 1


if __name__ == "__main__":
    sys.exit(main())
