"""Order planning for 100 million clips: time per step and size of the state.

The peer is what most trainers do: one permutation of all clips in memory, drawn anew every epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan

CLIPS, BUCKETS, MICRO_BATCHES, BATCH, STEPS = 100_000_000, 561, 224, 12, 3000
GOAL_MS, GOAL_STATE_BYTES = 1.0, 16 * 1024


def hundred_million() -> OrderPlan:
    """The order of all clips, in as many buckets as the published recipe has."""
    buckets = tuple(OrderBucket(f"256px/{n}f/16:9", CLIPS // BUCKETS + n, BATCH) for n in range(BUCKETS))
    return OrderPlan(buckets, seed=1, micro_batches=MICRO_BATCHES)


def ours() -> dict[str, object]:
    plan = hundred_million()
    state, seconds, cpu = plan.start(), [], []
    began = time.perf_counter()
    plan.step(state)
    first = time.perf_counter() - began
    for number in range(STEPS):
        began, cpu_began = time.perf_counter(), time.thread_time()
        order = plan.step(state)
        own = order.micro_batches[number % MICRO_BATCHES]
        state = plan.advance(state)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - cpu_began)
        assert len(own) == BATCH
    began = time.perf_counter()
    everything = [list(micro_batch) for micro_batch in order.micro_batches]
    whole = time.perf_counter() - began
    assert len(everything) == MICRO_BATCHES
    return {
        "step_ms_p50": round(statistics.median(seconds) * 1e3, 4),
        "step_ms_p99": round(sorted(seconds)[int(len(seconds) * 0.99)] * 1e3, 4),
        "step_cpu_ms_p50": round(statistics.median(cpu) * 1e3, 4),
        "step_cpu_ms_p99": round(sorted(cpu)[int(len(cpu) * 0.99)] * 1e3, 4),
        "first_step_ms": round(first * 1e3, 3),
        "all_micro_batches_of_a_step_ms": round(whole * 1e3, 3),
        "resident_bytes_of_the_order": 0,
        "state_bytes": len(json.dumps(state.to_json())),
    }


def peer() -> dict[str, object]:
    began = time.perf_counter()
    order = np.random.default_rng(1).permutation(CLIPS)
    return {
        "what": "numpy permutation of all clips, once per epoch and process",
        "epoch_seconds": round(time.perf_counter() - began, 2),
        "resident_bytes_of_the_order": int(order.nbytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    load = round(os.getloadavg()[0], 1)
    result = {
        "benchmark": "order_planning",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "load_before": load,
        },
        "setting": {"clips": CLIPS, "buckets": BUCKETS, "micro_batches": MICRO_BATCHES, "batch": BATCH, "steps": STEPS},
        "goal": {"step_ms": GOAL_MS, "state_bytes": GOAL_STATE_BYTES},
        "ours": ours(),
        "peer": peer(),
    }
    text = json.dumps(result, indent=1)
    parser.parse_args().out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
