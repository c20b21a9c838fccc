"""The recipes of the published model fit their GPUs, keep its samples, and cannot be spoilt unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from videotrain_api.cost.forecast import row_time
from videotrain_api.cost.published import FIRST_STAGES, LAST_STAGE
from videotrain_api.cost.rates import MID
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.stages import EngineName, node_counts
from videotrain_api.resource.trainrun import node_bounds
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[3] / "manifests/examples"
RECIPE, HIGH_COMPRESSION = "open-sora-2.yaml", "open-sora-2-dc-ae.yaml"
DC_AE = {1: 20, 32: 8, 64: 4, 96: 3, 128: 2}
"""Samples of one GPU by frames, of the public configuration for clips of the Video DC-AE."""


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / name).read_text())


def trained(name: str):
    run = parse_run(manifest(name))
    return run, [(index, stage) for index, stage in enumerate(run.spec.stages) if stage.train]


@pytest.mark.parametrize("gpus", [8, 112, 192, 224])
@pytest.mark.parametrize("engine", get_args(EngineName))
@pytest.mark.parametrize("name", [RECIPE])
def test_every_row_of_every_stage_fits(name, engine, gpus):
    run, stages = trained(name)
    assert run.spec.pool.gpu_memory_gigabytes == 141
    for index, stage in stages:
        table = TrainMemory(run, index)
        for number, row in enumerate(stage.train.buckets):
            memory = table.of(number, gpus, replace(table.setting(row), engine=engine))
            assert memory.fits, memory


def test_a_step_has_the_published_samples_of_each_row():
    _, stages = trained(RECIPE)
    for (_, stage), gpus, rows in zip(stages, (224, 192, 192), (FIRST_STAGES, FIRST_STAGES, LAST_STAGE), strict=True):
        layout = stage.train.parallel
        found = [
            ((b.resolution, b.min_frames or 1, b.frames), layout.micro_batches_of(b) * b.batch_size)
            for b in stage.train.buckets
        ]
        wanted = [
            ((row.resolution, row.min_frames, row.frames), gpus // row.context_parallel * row.batch_size)
            for row in rows
        ]
        assert sorted(found) == sorted(wanted)


def test_a_step_of_the_high_compression_recipe_has_its_published_samples():
    _, stages = trained(HIGH_COMPRESSION)
    for _, stage in stages:
        layout = stage.train.parallel
        for row in stage.train.buckets:
            assert layout.micro_batches_of(row) * row.batch_size == 160 * DC_AE[row.frames]


@pytest.mark.parametrize("name", [RECIPE, HIGH_COMPRESSION])
def test_no_allowed_number_of_nodes_leaves_many_gpus_waiting(name):
    run, stages = trained(name)
    for _, stage in stages:
        counts = node_counts(node_bounds(run, stage))
        held = {
            nodes: 8 * nodes * sum(row_time(run, stage.train, row, 8 * nodes, MID).total for row in stage.train.buckets)
            for nodes in counts
        }
        assert max(held.values()) / min(held.values()) < 1.2, (stage.name, held)
        assert held[counts[-1]] < 1.03 * min(held.values()), "the most nodes waste nothing"
