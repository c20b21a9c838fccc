"""A row that a GPU cannot hold is refused with the numbers, and what the refusal advises is accepted."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.facts import facts_of
from videotrain_api.rules.memory import MOST_ADVISED, check_memory
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[3] / "manifests/examples"


@pytest.fixture(scope="module")
def recipe():
    return yaml.safe_load((EXAMPLES / "open-sora-2.yaml").read_text())


def changed(recipe, stage, row, layout=None, batches=1, **fields):
    """A copy with other fields in a row, and in the layout of its stage; the row's batch so many times as large."""
    other = copy.deepcopy(recipe)
    task = other["spec"]["stages"][stage]["train"]
    task["buckets"][row] |= fields
    task["buckets"][row]["batchSize"] *= batches
    task["parallel"] |= layout or {}
    return other


def samples_of(manifest, stage, row):
    """Samples of a step of a row."""
    task = manifest["spec"]["stages"][stage]["train"]
    bucket = task["buckets"][row]
    return bucket["batchSize"] * bucket.get("microBatches", task["parallel"].get("microBatchesPerStep", 1))


def refusals(manifest):
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    return caught.value.problems


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_fits(example):
    for document in yaml.safe_load_all(example.read_text()):
        if document and document["kind"] == "VideoTrainingRun":
            parse_run(document)


def test_a_larger_batch_is_refused_with_the_row_and_its_numbers(recipe):
    (problem,) = refusals(changed(recipe, 0, 1, batches=4))
    assert problem.path == "spec.stages[0].train.buckets[1].batchSize"
    assert problem.value == 4 * recipe["spec"]["stages"][0]["train"]["buckets"][1]["batchSize"]
    assert "row 256px 5-33f needs" in problem.message
    numbers = [float(n) for n in re.findall(r"(\d+\.\d) GB", problem.message)]
    total, limit, *parts = numbers[:9]
    assert limit == 141.0
    assert total > limit
    assert sum(parts) == pytest.approx(total, abs=0.4)


def test_only_the_row_that_does_not_fit_is_named(recipe):
    problems = refusals(changed(recipe, 0, 0, recompute="none", batchSize=45))
    assert [problem.path for problem in problems] == ["spec.stages[0].train.buckets[0].batchSize"]


def test_the_longest_clips_are_refused_if_everything_is_kept_on_one_gpu(recipe):
    last = len(recipe["spec"]["stages"][2]["train"]["buckets"]) - 1
    for policy in ("none", "selective"):
        alone = {"contextParallel": 1, "batchSize": 1, "microBatches": 192}
        problems = refusals(changed(recipe, 2, last, recompute=policy, **alone))
        assert [p.path for p in problems] == [f"spec.stages[2].train.buckets[{last}].batchSize"]


@pytest.mark.parametrize(
    ("stage", "row", "batches", "fields"),
    [
        (0, 1, 4, {}),
        (1, 0, 8, {}),
        (0, 3, 2, {"recompute": "none", "batchSize": 4}),
        (2, 4, 1, {"recompute": "none", "contextParallel": 2}),
    ],
)
def test_each_setting_that_a_refusal_advises_is_accepted(recipe, stage, row, batches, fields):
    manifest = changed(recipe, stage, row, batches=batches, **fields)
    (problem,) = refusals(manifest)
    advice = problem.message.partition("it fits with ")[2].partition("; or ")[0]
    ways = [re.sub(r" \(.*", "", way) for way in re.split(r", or ", advice)]
    assert ways != [""]
    for way in ways:
        change = yaml.safe_load("{" + way + "}")
        of_layout = {name: change.pop(name) for name in ("zeroStage", "engine") if name in change}
        advised = changed(manifest, stage, row, of_layout, **change)
        parse_run(advised)
        assert samples_of(advised, stage, row) == samples_of(manifest, stage, row)


def test_whoever_has_larger_gpus_says_so(recipe):
    manifest = changed(recipe, 0, 1, batches=4)
    manifest["spec"]["pool"]["gpuMemoryGigabytes"] = 500
    parse_run(manifest)
    manifest["spec"]["pool"]["gpuMemoryGigabytes"] = 20
    assert len(refusals(manifest)) == sum(len(stage["train"]["buckets"]) for stage in manifest["spec"]["stages"])


def test_more_nodes_are_advised_where_they_are_enough(recipe):
    table = TrainMemory(parse_run(recipe), 0)
    recipe = changed(recipe, 0, 0)
    stage, pool = recipe["spec"]["stages"][0], recipe["spec"]["pool"]
    stage["nodes"] = {"min": 2, "max": 28, "allowed": [2, 4, 14, 28]}
    pool["gpuMemoryGigabytes"] = math.ceil(table.of(2, 4 * 8).total / 1e9)
    for problem in refusals(recipe):
        if "buckets[2]" in problem.path:
            advised = int(re.search(r"; or at least (\d+) nodes, or ", problem.message)[1])
            assert 2 < advised <= 4
            assert table.of(2, 8 * advised).total <= pool["gpuMemoryGigabytes"] * 1e9
            assert table.of(2, 8 * (advised - 1)).total > pool["gpuMemoryGigabytes"] * 1e9
            break
    else:
        pytest.fail("the row was not refused")


def test_nodes_that_are_never_enough_are_not_advised(recipe):
    (problem,) = refusals(changed(recipe, 2, 4, contextParallel=1, microBatches=192))
    assert "nodes" not in problem.message
    assert problem.message.endswith("); or spec.pool.gpuMemoryGigabytes if the GPUs have more")


def test_so_few_rows_are_advised_that_the_webhook_has_time_for_the_largest_manifest(recipe):
    manifest = copy.deepcopy(recipe)
    stage = manifest["spec"]["stages"][0]
    lengths = range(5, 1025, 4)[:64]
    stage["train"]["buckets"] = [{"resolution": "256px", "frames": f, "batchSize": 1_000_000} for f in lengths]
    manifest["spec"]["stages"] = [stage | {"name": f"s{number}"} for number in range(32)]
    problems = list(check_memory(facts_of(VideoTrainingRun.from_wire(manifest))))
    assert len(problems) == 32 * 64
    assert sum("it fits with" in problem.message for problem in problems) == MOST_ADVISED


def test_a_stage_that_does_not_compile_needs_more(recipe):
    def total(compile_blocks):
        manifest = copy.deepcopy(recipe)
        manifest["spec"]["stages"][0]["train"]["compile"] = compile_blocks
        return TrainMemory(parse_run(manifest, fitting=False), 0).of(1, 224).total

    assert total("auto") == total("on") < total("off")


def test_uncompiled_layers_keep_what_stage_3_gathers_for_them(recipe):
    manifest = copy.deepcopy(recipe)
    table = TrainMemory(parse_run(manifest, fitting=False), 0)
    sharded = {"engine": "deepspeed", "zero_stage": 3, "recomputed": (None, None)}
    setting = replace(table.setting(table.task.buckets[0]), **sharded)
    weights = {
        (compiled, policy): table.of(0, 224, replace(setting, compiled=compiled, recompute=policy)).memory.weights
        for compiled in (True, False)
        for policy in ("none", "full")
    }
    assert weights[False, "none"] - weights[True, "none"] == 2 * table.parameters.trained
    assert weights[False, "full"] == weights[True, "full"] == weights[True, "none"]


def test_selective_saves_nothing_beside_an_adapter(recipe):
    manifest = copy.deepcopy(recipe)
    manifest["spec"]["stages"][0]["train"]["lora"] = {"rank": 16}
    table = TrainMemory(parse_run(manifest, fitting=False), 0)
    setting = table.setting(table.task.buckets[1])
    none, selective, full = (
        table.of(1, 224, replace(setting, recompute=policy)).total for policy in ("none", "selective", "full")
    )
    assert none == selective > full


BAD = Path(__file__).parent / "bad"


@pytest.mark.parametrize(
    "name", ["an-autoencoder-that-does-not-fit", "clips-that-cannot-be-encoded", "videos-that-cannot-be-decoded"]
)
def test_what_is_advised_for_clips_and_videos_is_accepted(name):
    manifest = yaml.safe_load((BAD / f"99-{name}.yaml").read_text())
    (problem,) = refusals(manifest)
    ways = problem.message.partition("it fits with ")[2].partition("; or ")[0].split(", or ")
    assert len(ways) >= 2
    for way in ways:
        advised = copy.deepcopy(manifest)
        stages = {stage["task"]: stage[stage["task"]] for stage in advised["spec"]["stages"]}
        rows = stages["train"]["buckets"] if "train" in stages else []
        targets = [stages["autoencoder"]["bucket"]] if "autoencoder" in stages else rows or [stages["sample"]]
        change = re.sub(r" in the rows of train stages| \([\d.]+ GB\)", "", way)
        if change.startswith("spec.autoencoder.tiling: "):
            advised["spec"]["autoencoder"]["tiling"] = yaml.safe_load(change.partition(": ")[2])
        else:
            for target in targets:
                target |= yaml.safe_load("{" + change + "}")
        parse_run(advised)


def test_offloading_spares_the_models_that_are_not_in_use():
    manifest = yaml.safe_load((BAD / "99-videos-that-cannot-be-decoded.yaml").read_text())
    spec = manifest["spec"]
    spec["autoencoder"] = {"preset": "hunyuan-vae", "weights": "s3://weights/vae.safetensors"}
    spec["model"]["preset"] = "mmdit-11b"
    spec["textEncoder"] = {"kind": "t5-clip", "weights": "s3://weights/text"}
    spec["pool"]["gpuMemoryGigabytes"] = 44
    (problem,) = refusals(manifest)
    assert "models 34.0 GB" in problem.message
    assert "it fits with offload: true" in problem.message
    spec["stages"][0]["sample"]["offload"] = True
    parse_run(manifest)
