"""The recipes of the published model fit their GPUs, keep its samples, and cannot be spoilt unnoticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from videotrain_api.cost.forecast import forecast, row_time
from videotrain_api.cost.published import FIRST_STAGES, LAST_STAGE
from videotrain_api.cost.rates import MID
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.generate.speed import matched_rows
from videotrain_api.resource.stages import EngineName, node_counts
from videotrain_api.resource.trainrun import node_bounds
from videotrain_api.schema import ManifestError
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
@pytest.mark.parametrize("name", [RECIPE, HIGH_COMPRESSION])
def test_every_row_of_every_stage_fits(name, engine, gpus):
    run, stages = trained(name)
    assert run.spec.pool.gpu_memory_gigabytes == 141
    for index, stage in stages:
        table = TrainMemory(run, index)
        for number, row in enumerate(stage.train.buckets):
            memory = table.of(number, gpus, replace(table.setting(row), engine=engine))
            assert memory.fits, memory


@pytest.mark.parametrize("engine", get_args(EngineName))
def test_the_recipe_is_accepted_for_one_node_too(engine):
    changed = manifest(RECIPE)
    for stage in changed["spec"]["stages"]:
        stage["nodes"] = {"min": 1, "max": 1}
        stage["train"]["parallel"]["engine"] = engine
    assert parse_run(changed).metadata.name == "open-sora-2"


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
            nodes: 8
            * nodes
            * sum(row_time(run, stage.train, row, 8 * nodes, MID, 8).total for row in stage.train.buckets)
            for nodes in counts
        }
        assert max(held.values()) / min(held.values()) < 1.2, (stage.name, held)
        assert held[counts[-1]] < 1.03 * min(held.values()), "the most nodes waste nothing"


def doubled(spec: dict[str, Any]) -> None:
    for stage in spec["stages"]:
        for row in stage["train"]["buckets"]:
            row["batchSize"] *= 2


def nothing_recomputed(spec: dict[str, Any]) -> None:
    for stage in spec["stages"]:
        for place in (stage["train"]["parallel"], *stage["train"]["buckets"]):
            place.pop("recompute", None)


def one_gpu_for_the_longest(spec: dict[str, Any]) -> None:
    spec["stages"][2]["train"]["buckets"][-1]["contextParallel"] = 1


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "batch doubled": (
        doubled,
        [
            *(f"spec.stages[{stage}].train.buckets[{row}]" for stage in (0, 1) for row in (1, 2, 4)),
            *(f"spec.stages[2].train.buckets[{row}]" for row in (1, 3)),
        ],
    ),
    "recomputation off": (nothing_recomputed, [f"spec.stages[{stage}].train.buckets[1]" for stage in (0, 1)]),
    "the longest clips on one GPU": (one_gpu_for_the_longest, ["spec.stages[2].train.buckets[4]"]),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_copy_is_refused_with_the_rows_that_do_not_fit(how):
    spoil, rows = SPOILT[how]
    changed = copy.deepcopy(manifest(RECIPE))
    spoil(changed["spec"])
    with pytest.raises(ManifestError) as caught:
        parse_run(changed)
    # With one GPU to a clip there are also too few micro-batches, which is told besides.
    problems = [problem for problem in caught.value.problems if not problem.path.endswith("microBatches")]
    assert [problem.path for problem in problems] == [f"{row}.batchSize" for row in rows]
    for problem in problems:
        assert "needs" in problem.message and "of each of" in problem.message and "it fits with" in problem.message


def test_the_modelled_gain_holds_in_every_row_and_the_cost_in_sum():
    run, _ = trained(RECIPE)
    for row in matched_rows(run):
        short = row.published in FIRST_STAGES
        assert row.gain(MID) >= (2.35 if short else 2.7), row.published.name
    found = forecast(run)
    assert float(found.total_cost) <= 55_000
    assert not any(stage.train.fp8 for stage in run.spec.stages)
