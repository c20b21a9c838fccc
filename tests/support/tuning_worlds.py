"""A manifest of tiny rows to tune, and a world that measures them."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
import yaml

from videotrain_api.cost.search import choices
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.validation import parse_run
from videotrain_trainer.training.tuning import Tuner
from videotrain_trainer.worker.stage_context import World

TINY = Path(__file__).parents[2] / "manifests/examples/tiny.yaml"
STAGE = 3


def manifest(gpus: int = 1, **task) -> dict:
    document = yaml.safe_load(TINY.read_text())
    document["spec"]["pool"]["gpusPerNode"] = gpus
    rows = [
        {"resolution": "32px", "frames": 8, "batchSize": 4, "microBatches": 4, "aspectRatios": ["1:1"]},
        {"resolution": "64px", "frames": 16, "batchSize": 2, "microBatches": 2, "aspectRatios": ["1:1"]},
    ]
    document["spec"]["stages"][1]["autoencoder"]["parallel"] = {"microBatchesPerStep": gpus}
    document["spec"]["stages"][STAGE]["train"] |= {"buckets": rows, **task}
    return document


def table_of(document: dict) -> TrainMemory:
    return TrainMemory(parse_run(document), STAGE)


def measure_all(world: World) -> list[tuple[str, int, str, float]]:
    """Every degree under both engines on two ranks; engine, degree, policy and seconds of a step."""
    found = []
    for engine in ("deepspeed", "fsdp2"):
        table = table_of(manifest(world.size, parallel={"engine": engine}))
        layout = table.task.parallel
        every = {(c.setting.context_parallel, c.setting.recompute): c for c in choices(table, layout, 1, world.size)}
        tuner = Tuner(table, layout, world, {degree for degree, _ in every})
        for (degree, policy), choice in every.items():
            found.append((engine, degree, policy, tuner.measure(choice, 1).step_seconds(world.size)))
    dist.barrier()
    return found
