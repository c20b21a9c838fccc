"""Manifests of runs that begin from what another one made."""

import copy
from pathlib import Path

import pytest
import yaml

from videotrain_api.config.fork import continuation_problems, forked, needed_stages
from videotrain_api.config.resolve import resolve
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests" / "examples"
FREE = {
    "steps": 900,
    "optimizer": {"learningRate": [{"value": 1e-5}]},
    "parallel": {"microBatchesPerStep": 2, "contextParallel": 2, "engine": "fsdp2", "recompute": "full"},
    "buckets": [
        {"resolution": "64px", "frames": 1, "batchSize": 2, "microBatches": 8, "aspectRatios": ["1:1"]},
        {"resolution": "64px", "frames": 8, "batchSize": 8, "contextParallel": 2, "aspectRatios": ["1:1"]},
    ],
}
FIXED = {
    "buckets": [{"resolution": "64px", "frames": 8, "batchSize": 2, "aspectRatios": ["1:1"]}],
    "parallel": {"microBatchesPerStep": 8},
    "conditioning": {"t2v": 1},
    "textDropout": 0.1,
    "precision": "bf16",
    "emaDecay": 0.9,
    "appendedEverySteps": 300,
}


def demo():
    return yaml.safe_load((EXAMPLES / "demo.yaml").read_text())


def fork(manifest, first):
    document = forked(parse_run(manifest), manifest, first, "new")
    return document, parse_run(document)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_stage_of_every_example_reads_what_it_read(path):
    manifest = next(each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "VideoTrainingRun")
    before = {config.stage.name: config for config in resolve(parse_run(manifest))}
    for first in before:
        document, run = fork(manifest, first)
        own = f"{run.spec.storage.uri}/new/"
        for config in resolve(run):
            old = before[config.stage.name]
            assert config.seed == old.seed
            for field in ("clips", "latents", "autoencoder_weights", "model_weights", "initial_weights"):
                now, then = getattr(config.paths, field), getattr(old.paths, field)
                if now is not None and not now.startswith(own):
                    assert now.removesuffix("/weights/model.safetensors") == then
                else:
                    assert (now is None) == (then is None)
        assert document["metadata"]["name"] == "new"
        assert "status" not in document


def test_stages_that_nobody_reads_are_not_asked_for():
    run = parse_run(demo())
    assert [stage.name for stage in needed_stages(run, "encode")] == ["curate", "autoencoder"]
    assert [stage.name for stage in needed_stages(run, "i2v-64px")] == ["curate", "autoencoder", "encode"]
    assert needed_stages(run, "curate") == []


def test_a_run_from_its_first_stage_on_is_the_same_run():
    manifest = demo()
    document, _ = fork(manifest, "curate")
    assert document["spec"] == manifest["spec"]


def test_weights_of_a_stage_by_name_become_weights_by_uri():
    manifest = demo()
    manifest["spec"]["stages"][4]["train"]["initFrom"] = {"stage": "i2v-64px"}
    document, _ = fork(manifest, "i2v-16-frames")
    uri = "s3://videotrain/demo/demo/i2v-64px/weights/model.safetensors"
    assert document["spec"]["stages"][0]["train"]["initFrom"] == {"uri": uri}


def configs(changes):
    manifest = demo()
    manifest["spec"]["nodes"]["max"], manifest["spec"]["pool"]["gpusPerNode"] = 1, 2  # which may share a clip
    changed = copy.deepcopy(manifest)
    changed["spec"]["stages"][3]["train"] |= changes
    changed["spec"]["checkpoint"]["everySteps"] = 7
    resolved = [resolve(parse_run(one)) for one in (manifest, changed)]
    return [next(each for each in found if each.stage.name == "i2v-64px") for found in resolved]


@pytest.mark.parametrize("field", FREE)
def test_a_checkpoint_is_gone_on_from_with_another(field):
    assert continuation_problems(*configs({field: FREE[field]})) == []


@pytest.mark.parametrize("field", FIXED)
def test_no_checkpoint_is_gone_on_from_with_another(field):
    problems = continuation_problems(*configs({field: FIXED[field]}))
    assert len(problems) == 1
    assert problems[0].path.startswith(f"train.{field}")


def row(**changes):
    return {"resolution": "64px", "frames": 8, "batchSize": 4, "aspectRatios": ["1:1"]} | changes


@pytest.mark.parametrize(
    ("rows", "layout", "path"),
    [
        ([row(batchSize=2)], 4, "train.buckets[0].batchSize"),
        ([row(microBatches=8)], 4, "train.buckets[0].microBatches"),
        ([row()], 8, "train.parallel.microBatchesPerStep"),
        ([row(batchSize=2)], 8, None),
        ([row(batchSize=1, microBatches=16)], 4, None),
        ([row(contextParallel=2, recompute="full")], 4, None),
    ],
)
def test_a_step_may_be_cut_into_other_micro_batches_but_holds_as_many_samples(rows, layout, path):
    task = {"parallel": {"microBatchesPerStep": 4}, "buckets": [row()]}
    (_, old), (_, new) = (
        configs(each) for each in (task, {"parallel": {"microBatchesPerStep": layout}, "buckets": rows})
    )
    assert [problem.path for problem in continuation_problems(old, new)] == ([path] if path else [])


def test_no_checkpoint_is_gone_on_from_with_another_seed_or_data():
    (old, new) = configs({})
    paths = new.paths.model_copy(update={"latents": "s3://other"})
    for other in (new.model_copy(update={"seed": 1}), new.model_copy(update={"paths": paths})):
        assert len(continuation_problems(old, other)) == 1
