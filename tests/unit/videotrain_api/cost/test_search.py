"""The search keeps what is trained, finds what fits, and finds the fastest of it."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import yaml

from videotrain_api.cost.forecast import row_time
from videotrain_api.cost.nearest import degrees
from videotrain_api.cost.rates import MID
from videotrain_api.cost.search import AS_FAST, search_stage
from videotrain_api.cost.stage_memory import TrainMemory, worlds_of
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"


def manifest_of(name: str, **pool) -> dict:
    manifest = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    manifest["spec"]["pool"] |= pool
    return manifest


def manifest_engine(manifest, index) -> str:
    return manifest["spec"]["stages"][index]["train"].get("parallel", {}).get("engine", "deepspeed")


def searched(manifest):
    run = parse_run(manifest, fitting=False)
    return run, {i: search_stage(TrainMemory(run, i)) for i, stage in enumerate(run.spec.stages) if stage.train}


def pasted(manifest, found):
    other = copy.deepcopy(manifest)
    for index, stage in found.items():
        task = stage.task.to_wire()
        other["spec"]["stages"][index]["train"] |= {name: task[name] for name in ("buckets", "parallel")}
    return other


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("open-sora-2", {}),
        ("open-sora-2", {"gpuMemoryGigabytes": 80}),
        ("open-sora-2", {"gpuMemoryGigabytes": 60}),
        ("open-sora-2-dc-ae", {}),
        ("tiny", {}),
        ("demo", {}),
    ],
)
def test_what_is_found_is_accepted_fits_and_makes_as_many_samples_no_slower(name, pool):
    manifest = manifest_of(name, **pool)
    _, found = searched(manifest)
    again = parse_run(pasted(manifest, found))
    for index, stage in found.items():
        for number, (before, after) in enumerate(zip(stage.before, stage.after, strict=True)):
            assert after.memory.fits
            samples = [c.setting.batch_size * c.setting.micro_batches for c in (before, after)]
            assert samples[0] == samples[1]
            if before.memory.fits:
                other_engine = stage.task.parallel.engine != manifest_engine(manifest, index)
                assert after.seconds_per_step <= (AS_FAST if other_engine else 1) * before.seconds_per_step
            row = again.spec.stages[index].train.buckets[number]
            assert TrainMemory(again, index).setting(row) == after.setting


@pytest.mark.parametrize("lora", [None, {"rank": 16}])
def test_nothing_is_proposed_that_would_be_refused(lora):
    manifest = manifest_of("open-sora-2", gpuMemoryGigabytes=38)
    for stage in manifest["spec"]["stages"]:
        stage["train"]["parallel"] = {"engine": "deepspeed"}
        if lora:
            stage["train"]["lora"] = lora
    with pytest.raises(ManifestError, match="GPUs, which have") as refused:
        parse_run(manifest)
    assert ("zeroStage: 3" in str(refused.value)) == (lora is None)


def test_a_manifest_that_does_not_fit_is_made_to():
    manifest = manifest_of("open-sora-2", gpuMemoryGigabytes=80)
    with pytest.raises(ManifestError, match="GPUs, which have"):
        parse_run(manifest)
    parse_run(pasted(manifest, searched(manifest)[1]))


def test_no_setting_of_the_engine_that_was_found_is_faster():
    manifest = manifest_of("open-sora-2")
    run, found = searched(manifest)
    table, stage = TrainMemory(run, 0), found[0]
    smallest, largest = worlds_of(run, table.stage)[0], worlds_of(run, table.stage)[-1]
    for number, after in enumerate(stage.after[:3]):
        row = table.task.buckets[number]
        samples = row.batch_size * table.task.parallel.micro_batches_of(row)
        for size, policy, degree in product(range(1, 46), ("none", "selective", "full"), degrees(table)):
            if samples % size or samples // size < largest // degree:
                continue
            changes = {"batch_size": size, "micro_batches": samples // size, "context_parallel": degree}
            bucket = row.model_copy(update={**changes, "recompute": policy})
            if table.of(number, smallest, table.setting(bucket, stage.task.parallel)).fits:
                seconds = row_time(run, stage.task, bucket, largest, MID, run.spec.pool.gpus_per_node).total
                assert after.seconds_per_step <= AS_FAST * seconds


def test_a_stage_that_fits_in_no_way_is_told():
    run = parse_run(manifest_of("open-sora-2", gpuMemoryGigabytes=5), fitting=False)
    assert search_stage(TrainMemory(run, 0)) is None


def test_what_only_sharded_weights_make_room_for_is_found():
    manifest = manifest_of("open-sora-2", gpuMemoryGigabytes=24)
    del manifest["spec"]["stages"][1:]
    _, found = searched(manifest)
    assert found[0].task.parallel.zero_stage == 3
    parse_run(pasted(manifest, found))
