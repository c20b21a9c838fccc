"""Collectives and bytes of a training step under our engines, beside DeepSpeed as it is by default.

    python benchmarks/engine_traffic.py --out benchmarks/results/engine-traffic-DATE.json

Two gloo ranks train the same small transformer in bf16, two micro-batches each in a step. Every collective is counted
where torch is called. Bytes are what a rank sends when collectives are rings, per parameter: (N - 1) / N of the tensor
for a reduction, a gather or a broadcast, twice that for an all-reduce. DeepSpeed is given precision, stage, clipping
and accumulation, once with its own reduction in bf16 and once in float32 as ours; everything else is its default.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from support.engine_worlds import (
    LARGE,
    LEARNING_RATE,
    OPTIMIZER,
    Traffic,
    costs,
    in_world,
    micro_batch_loss,
    small_model,
    watch,
)

from videotrain_trainer.parallel.deepspeed_import import deepspeed
from videotrain_trainer.worker.stage_context import World

RANKS, MICRO_BATCHES = 2, 2
OURS = ("zero1", "zero2", "zero3", "fsdp2")
STAGES = (1, 2, 3)
KINDS = ("bfloat16", "float32")
"""In which DeepSpeed reduces gradients: by default, and as ours do."""


def default_deepspeed(world: World, stages: Sequence[int], float32: bool) -> dict[str, Traffic]:
    """Collectives of DeepSpeed's second step by stage, each stage in turn."""
    traffic, found = Traffic(), {}
    watch(traffic)  # before DeepSpeed looks for its collectives
    for stage in stages:
        model = small_model(*LARGE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": MICRO_BATCHES,
            "gradient_clipping": OPTIMIZER.gradient_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage},
        }
        if float32:
            config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        for step in range(2):
            traffic.calls.clear()
            for number in range(MICRO_BATCHES):
                engine.backward(micro_batch_loss(engine, step, number * world.size + world.rank))
                engine.step()
        found[f"zero{stage}"] = Traffic(list(traffic.calls))
    return found


def summary(traffic: Traffic, parameters: int) -> dict[str, Any]:
    """Calls by collective, and bytes sent per parameter."""
    large = [(name, dtype, elements) for name, dtype, elements in traffic.calls if elements > 8]
    sent = 0.0
    for name, dtype, elements in large:
        passes = 2 if name == "all_reduce" else 1
        sent += passes * (RANKS - 1) / RANKS * elements * getattr(torch, dtype.removeprefix("torch.")).itemsize
    calls = Counter(f"{name} {dtype.removeprefix('torch.')}" for name, dtype, _ in large)
    return {"calls": dict(sorted(calls.items())), "bytes_per_parameter": sent / parameters}


def measure(
    ours: Sequence[str] = OURS, stages: Sequence[int] = STAGES, kinds: Sequence[str] = KINDS
) -> dict[str, dict[str, Any]]:
    """Our engines, and DeepSpeed's defaults by stage and kind of reduction."""
    with tempfile.TemporaryDirectory() as folder:
        mine = in_world(Path(folder, "ours"), RANKS, costs, list(ours))[0]
        (parameters,) = {about["parameters"] for about in mine.values()}
        found = {name: summary(about["traffic"], parameters) for name, about in mine.items()}
        for kind in kinds:
            peer = in_world(Path(folder, kind), RANKS, default_deepspeed, list(stages), kind == "float32")[0]
            found |= {peer_name(name, kind): summary(traffic, parameters) for name, traffic in peer.items()}
    return found


def peer_name(stage: str, kind: str) -> str:
    """Of DeepSpeed's defaults in the result."""
    return f"DeepSpeed's defaults, {stage}, {kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    today = datetime.now(UTC).date().isoformat()
    result = {
        "what": "collectives of a step of two micro-batches on each of two ranks, bf16",
        "date": today,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "engines": measure(),
    }
    path = options.out or Path(__file__).parent / "results" / f"engine-traffic-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["engines"], indent=1))


if __name__ == "__main__":
    main()
