"""Rules that no file under bad/ shows: a small change of the good manifest, the field blamed, and who refuses it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

Spec = dict[str, Any]
SAMPLE, TRAIN, ENCODE, AUTOENCODER, CURATE = 4, 3, 2, 1, 0


def task(spec: Spec, index: int) -> Spec:
    stage = spec["stages"][index]
    return stage[stage["task"]]


def with_prompt(**prompt: Any) -> Callable[[Spec], None]:
    return lambda spec: task(spec, SAMPLE).update(prompts=[{"text": "a cat", **prompt}])


def with_select(**bounds: Any) -> Callable[[Spec], None]:
    return lambda spec: task(spec, TRAIN).update(select=[{"score": "motion", **bounds}])


def with_subsets(*subsets: Spec, named: str) -> Callable[[Spec], None]:
    return lambda spec: (spec["dataset"].update(subsets=list(subsets)), task(spec, TRAIN).update(subset=named))


TIER = {"name": "tier", "select": [{"score": "motion", "min": 1}]}


def with_rates(*pieces: Spec, **more: Any) -> Callable[[Spec], None]:
    return lambda spec: task(spec, TRAIN).update(optimizer={"learningRate": list(pieces), **more})


def with_budget(price: str = "2.00", **budget: Any) -> Callable[[Spec], None]:
    return lambda spec: (spec["pool"].update(pricePerGpuHour=price), spec.update(budget=budget))


def without(*indices: int) -> Callable[[Spec], None]:
    return lambda spec: [spec["stages"].pop(index) for index in sorted(indices, reverse=True)]


def with_bucket(index: int, **bucket: Any) -> Callable[[Spec], None]:
    where = "bucket" if index == AUTOENCODER else "buckets"
    row = {"resolution": "64px", "frames": 8, "batchSize": 1, **bucket}
    return lambda spec: task(spec, index).update({where: row if where == "bucket" else [row]})


def in_spec(**fields: Any) -> Callable[[Spec], None]:
    return lambda spec: spec.update(fields)


def causal(spec: Spec) -> None:
    spec["model"], spec["autoencoder"] = {"preset": "mmdit-tiny"}, {"preset": "hunyuan-vae"}


def second_training(spec: Spec, **fields: Any) -> Spec:
    stage = copy.deepcopy(spec["stages"][TRAIN]) | {"name": "more"}
    stage["train"].update(fields)
    return stage


def autoencoder(**fields: Any) -> Callable[[Spec], None]:
    return in_spec(autoencoder={"preset": "dc-ae-tiny", **fields})


RATE = {"value": 0.001}
BOTH, MODELS_ONLY = True, False
CASES: dict[str, tuple[Callable[[Spec], Any], str, str, bool]] = {
    "too few widths": (autoencoder(widths=[8, 16]), "spec.autoencoder.widths", "needs 4 to 6 numbers", MODELS_ONLY),
    "blocks for more stages than there are": (
        autoencoder(widths=[8, 32, 64, 128], depths=[0, 0, 0, 1]),
        "spec.autoencoder.decoderDepths",
        "with 4 widths needs 4 numbers of 0 or more",
        MODELS_ONLY,
    ),
    "a stage without a block in a kind that needs some": (
        in_spec(model={"preset": "mmdit-tiny"}, autoencoder={"preset": "hunyuan-vae-tiny", "depths": [0, 1, 1, 1]}),
        "spec.autoencoder.depths",
        "with 4 widths needs 4 numbers of 1 or more",
        MODELS_ONLY,
    ),
    "widths without a common shortcut": (
        autoencoder(widths=[8, 24, 16, 32, 32, 32], latentChannels=16),
        "spec.autoencoder.widths",
        "the shortcut between 24 and 16",
        MODELS_ONLY,
    ),
    "latent channels that do not divide": (
        autoencoder(latentChannels=5),
        "spec.autoencoder.latentChannels",
        "last width of 128",
        MODELS_ONLY,
    ),
    "weights for byte tokens": (in_spec(textEncoder={"weights": "s3://w"}), "spec.textEncoder.weights", "remove", BOTH),
    "an autoencoder with recomputed transformer blocks": (
        lambda spec: task(spec, AUTOENCODER)["parallel"].update(checkpointSingleBlocks=1),
        "spec.stages[1].autoencoder.parallel.checkpointSingleBlocks",
        "leave it out",
        BOTH,
    ),
    "a limit of a policy that no row has": (
        lambda spec: task(spec, TRAIN)["parallel"].update(recompute="selective", checkpointDoubleBlocks=1),
        "spec.stages[3].train.parallel.checkpointDoubleBlocks",
        "neither parallel.recompute nor a row of the bucket table says `full`",
        MODELS_ONLY,
    ),
    "an autoencoder with too few micro-batches": (
        lambda spec: task(spec, AUTOENCODER)["parallel"].update(microBatchesPerStep=3),
        "spec.stages[1].autoencoder.parallel.microBatchesPerStep",
        "allowed: 4 or more",
        BOTH,
    ),
    "a row of an autoencoder with context parallelism": (
        lambda spec: task(spec, AUTOENCODER)["bucket"].update(contextParallel=2),
        "spec.stages[1].autoencoder.bucket.contextParallel",
        "allowed: 1",
        BOTH,
    ),
    "a row that splits clips over an odd part of a node": (
        lambda spec: task(spec, TRAIN)["buckets"][0].update(contextParallel=3),
        "spec.stages[3].train.buckets[0].contextParallel",
        "must divide spec.pool.gpusPerNode (2)",
        BOTH,
    ),
    "a row that splits clips over more nodes than some worlds have": (
        lambda spec: task(spec, TRAIN)["buckets"][0].update(contextParallel=4),
        "spec.stages[3].train.buckets[0].contextParallel",
        "nodes.allowed with multiples of 2",
        MODELS_ONLY,
    ),
    "a row with too few micro-batches of its own": (
        lambda spec: task(spec, TRAIN)["buckets"][0].update(microBatches=3),
        "spec.stages[3].train.buckets[0].microBatches",
        "allowed: 4 or more",
        BOTH,
    ),
    "a budget in money without a price": (
        with_budget("0", maxCost="5.00"),
        "spec.budget.maxCost",
        "never be reached",
        BOTH,
    ),
    "warnings out of order": (
        with_budget(maxCost="5.00", warnAtPercent=[80, 50]),
        "spec.budget.warnAtPercent",
        "ascending",
        MODELS_ONLY,
    ),
    "samples of clips that nobody has": (
        lambda spec: (
            without(0, 1, 2, 3)(spec),
            spec["model"].update(weights="s3://m"),
            autoencoder(weights="s3://a")(spec),
        ),
        "spec.stages[0].sample.fromDataset",
        "needs clips",
        MODELS_ONLY,
    ),
    "a prompt that continues a clip": (
        with_prompt(condition="v2v_head", image="s3://i.png"),
        "spec.stages[4].sample.prompts[0].video",
        "the v2v kinds need a video",
        BOTH,
    ),
    "a picture without a use": (
        with_prompt(image="s3://i.png"),
        "spec.stages[4].sample.prompts[0].image",
        "the i2v kinds need an image and no other kind takes one",
        BOTH,
    ),
    "a picture for a model without its input": (
        lambda spec: (with_prompt(condition="i2v_head", image="s3://i")(spec), spec["model"].update(condEmbed=False)),
        "spec.stages[4].sample.prompts",
        "condEmbed: true",
        MODELS_ONLY,
    ),
    "autoencoder clips of several lengths": (
        with_bucket(AUTOENCODER, minFrames=4),
        "spec.stages[1].autoencoder.bucket.minFrames",
        "leave it out",
        MODELS_ONLY,
    ),
    "autoencoder clips that fall through": (
        with_bucket(AUTOENCODER, keepProbability=0.5),
        "spec.stages[1].autoencoder.bucket.keepProbability",
        "leave it out",
        MODELS_ONLY,
    ),
    "pictures in a row of clips": (
        with_bucket(TRAIN, minFrames=1),
        "spec.stages[3].train.buckets[0].minFrames",
        "row of their own",
        BOTH,
    ),
    "frames that no autoencoder encodes": (
        with_bucket(TRAIN, frames=10),
        "spec.stages[3].train.buckets[0].frames",
        "nearest are 8 and 12",
        BOTH,
    ),
    "even frames for a causal autoencoder": (
        causal,
        "spec.stages[3].train.buckets[0].frames",
        "nearest are 5 and 9",
        MODELS_ONLY,
    ),
    "one aspect ratio twice": (
        with_bucket(TRAIN, aspectRatios=["1:1", "1:1"]),
        "spec.stages[3].train.buckets[0].aspectRatios",
        "appear once",
        MODELS_ONLY,
    ),
    "an unknown aspect ratio of samples": (
        lambda spec: task(spec, SAMPLE).update(aspectRatio="1:9"),
        "spec.stages[4].sample.aspectRatio",
        "16:9",
        BOTH,
    ),
    "an unknown resolution of samples": (
        lambda spec: task(spec, SAMPLE).update(resolution="65px"),
        "spec.stages[4].sample.resolution",
        "unknown resolution",
        BOTH,
    ),
    "samples that no autoencoder decodes": (
        lambda spec: task(spec, SAMPLE).update(frames=6),
        "spec.stages[4].sample.frames",
        "nearest are 4 and 8",
        BOTH,
    ),
    "initial weights from an earlier stage and a file": (
        lambda spec: spec["stages"].insert(4, second_training(spec, initFrom={"stage": "train", "uri": "s3://w"})),
        "spec.stages[4].train.initFrom",
        "not both",
        BOTH,
    ),
    "a warm-up longer than the stage": (
        with_rates(RATE, warmupSteps=101),
        "spec.stages[3].train.optimizer.warmupSteps",
        "at most steps (100)",
        MODELS_ONLY,
    ),
    "an open rate before the last": (
        with_rates(RATE, RATE),
        "spec.stages[3].train.optimizer.learningRate[0].untilStep",
        "only the last piece",
        BOTH,
    ),
    "a rate after the last step": (
        with_rates(RATE | {"untilStep": 100}, RATE),
        "spec.stages[3].train.optimizer.learningRate[0].untilStep",
        "never used",
        MODELS_ONLY,
    ),
    "a subset that is not there": (
        with_subsets(TIER, named="tear"),
        "spec.stages[3].train.subset",
        "allowed: tier",
        MODELS_ONLY,
    ),
    "two subsets of a name": (with_subsets(TIER, TIER, named="tier"), "spec.dataset.subsets[1].name", "unique", False),
    "a subset that no stage uses": (
        with_subsets(TIER, {**TIER, "name": "spare"}, named="tier"),
        "spec.dataset.subsets[1].name",
        "use or remove it",
        MODELS_ONLY,
    ),
    "a subset of crossed bounds": (
        with_subsets({**TIER, "select": [{"score": "motion", "min": 2, "max": 1}]}, named="tier"),
        "spec.dataset.subsets[0].select[0].min",
        "at most max",
        BOTH,
    ),
    "a selection without bounds": (with_select(), "spec.stages[3].train.select[0]", "min, max or both", BOTH),
    "a selection with crossed bounds": (
        with_select(min=2.0, max=1.0),
        "spec.stages[3].train.select[0].min",
        "at most max (1.0)",
        BOTH,
    ),
    "crossed aspects": (
        lambda spec: task(spec, CURATE).update(minAspect=4.0),
        "spec.stages[0].curate.minAspect",
        "maxAspect (3.0)",
        BOTH,
    ),
    "crossed motion": (
        lambda spec: task(spec, CURATE).update(minMotion=61.0),
        "spec.stages[0].curate.minMotion",
        "maxMotion (60.0)",
        BOTH,
    ),
    "an allowed count twice": (
        in_spec(nodes={"min": 1, "max": 2, "allowed": [1, 1]}),
        "spec.nodes.allowed",
        "without repetition",
        BOTH,
    ),
    "an autoencoder stage without clips": (without(0), "spec.stages[0].task", "needs clips", BOTH),
    "an autoencoder stage before curation": (
        lambda spec: spec["stages"].insert(1, spec["stages"].pop(CURATE)),
        "spec.stages[0].task",
        "needs clips",
        BOTH,
    ),
    "an encode stage without clips": (
        lambda spec: (without(0, 1)(spec), spec["autoencoder"].update(weights="s3://a")),
        "spec.stages[0].task",
        "needs clips",
        BOTH,
    ),
    "a sample stage without an autoencoder": (
        lambda spec: (without(1, 2)(spec), spec["dataset"].update(latents="s3://l")),
        "spec.stages[2].task",
        "needs an autoencoder",
        BOTH,
    ),
    "an autoencoder that starts from a later stage": (
        lambda spec: task(spec, AUTOENCODER).update(initFrom={"stage": "train"}),
        "spec.stages[1].autoencoder.initFrom.stage",
        "earlier stage of the same task",
        BOTH,
    ),
    "explicit rope axes that do not sum": (
        lambda spec: spec["model"].update(hiddenSize=64, numHeads=4, ropeAxes=[4, 6, 8]),
        "spec.model.ropeAxes",
        "head dimension of 16",
        BOTH,
    ),
    "an adversarial phase that never begins": (
        lambda spec: task(spec, AUTOENCODER).update(adversarial={"startStep": 10}),
        "spec.stages[1].autoencoder.adversarial.startStep",
        "less than steps (10)",
        MODELS_ONLY,
    ),
    "a discriminator that sees one patch": (
        lambda spec: task(spec, AUTOENCODER).update(adversarial={"layers": 6}),
        "spec.stages[1].autoencoder.adversarial.layers",
        "allowed: 1 to 5",
        MODELS_ONLY,
    ),
    "a perceptual loss without weights": (
        lambda spec: task(spec, AUTOENCODER).update(perceptual={"weight": 0.5}),
        "spec.stages[1].autoencoder.perceptual.weights",
        "required",
        BOTH,
    ),
    "training of an autoencoder that can only be used": (
        causal,
        "spec.stages[1].task",
        "only kind dc-ae can be trained",
        MODELS_ONLY,
    ),
    "an adaptation of another task": (
        lambda spec: task(spec, AUTOENCODER).update(initFrom={"uri": "s3://w", "adapt": "new-latents"}),
        "spec.stages[1].autoencoder.initFrom.adapt",
        "allowed: image-autoencoder",
        MODELS_ONLY,
    ),
    "an adaptation of nothing": (
        lambda spec: task(spec, TRAIN).update(initFrom={"adapt": "new-latents"}),
        "spec.stages[3].train.initFrom.adapt",
        "needs uri",
        MODELS_ONLY,
    ),
    "two members of the union": (
        lambda spec: spec["stages"][CURATE].update(sample={"resolution": "64px", "frames": 8, "fromDataset": 1}),
        "spec.stages[0].sample",
        "only 'curate' may be set",
        BOTH,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_rule_blames_its_field(name, manifest, admission):
    change, path, words, by_both = CASES[name]
    change(manifest["spec"])
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    found = [problem.path for problem in caught.value.problems if words in problem.message]
    assert path in found, str(caught.value)
    assert bool(admission.refusals(manifest)) == by_both, admission.refusals(manifest)


@pytest.mark.parametrize("index", range(5))
def test_the_members_of_every_task_are_required_and_exclusive(index, manifest, admission):
    stage = manifest["spec"]["stages"][index]
    member = stage.pop(stage["task"])
    assert any(text.startswith(f"spec.stages[{index}].{stage['task']}: ") for text in admission.refusals(manifest))
    other = manifest["spec"]["stages"][(index + 1) % 5]
    stage[stage["task"]] = other[stage["task"]] = member
    blamed = f"spec.stages[{(index + 1) % 5}].{stage['task']}: "
    assert any(text.startswith(blamed) for text in admission.refusals(manifest))


@pytest.mark.parametrize("index", range(5))
def test_what_a_stage_does_may_be_edited_at_any_time_since_the_operator_judges_it(index, manifest, admission):
    old = copy.deepcopy(manifest)
    stage = manifest["spec"]["stages"][index]
    changes = {
        "curate": {"minFps": 1.0},
        "autoencoder": {"steps": 11},
        "encode": {"shardBytes": 65536},
        "train": {"steps": 101},
        "sample": {"fps": 7},
    }
    stage[stage["task"]].update(changes[stage["task"]])
    assert admission.refusals(manifest, old) == []


def test_the_task_of_a_stage_cannot_change(manifest, admission):
    old = copy.deepcopy(manifest)
    stage = manifest["spec"]["stages"][CURATE]
    stage["task"] = "encode"
    assert [t for t in admission.refusals(manifest, old) if t.startswith("spec.stages[0].task: task cannot change")]


def test_a_large_enough_budget_is_accepted(manifest):
    with_budget(maxCost="0.01", maxGpuHours=0.01)(manifest["spec"])
    assert parse_run(manifest).spec.budget is not None


@pytest.mark.parametrize(
    ("layout", "row", "allowed"),
    [
        ({"contextParallel": 2, "microBatchesPerStep": 2}, {}, None),
        ({"microBatchesPerStep": 4}, {"contextParallel": 2, "microBatches": 2}, None),
        # Over nodes, and more than the 4 heads: half of the sequence in each of two nodes.
        ({"contextParallel": 4, "microBatchesPerStep": 1}, {}, [2]),
        ({"contextParallel": 8, "microBatchesPerStep": 1}, {}, [4]),
        ({"contextParallel": 8, "microBatchesPerStep": 2, "zeroStage": 2}, {"contextParallel": 4}, [4]),
    ],
)
def test_layouts_that_split_sequences_over_every_allowed_world(layout, row, allowed, manifest, admission):
    if allowed:
        manifest["spec"]["stages"][TRAIN]["nodes"] = {"min": min(allowed), "max": max(allowed), "allowed": allowed}
    task(manifest["spec"], TRAIN)["parallel"] = layout
    task(manifest["spec"], TRAIN)["buckets"][0].update(row)
    assert parse_run(manifest) and admission.refusals(manifest) == []


def test_given_inputs_replace_stages(manifest, admission):
    without(0, 1, 2)(manifest["spec"])
    manifest["spec"]["dataset"] = {"latents": "s3://sets/latents", "clips": "s3://sets/clips"}
    manifest["spec"]["autoencoder"]["weights"] = "s3://weights/a"
    assert parse_run(manifest) and admission.refusals(manifest) == []
