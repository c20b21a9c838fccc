"""A manifest becomes frozen stage configurations: inputs connected, presets filled in, seeds and hashes stable."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from videotrain_api.config.resolve import resolve, stage_seed
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run


def test_stages_read_what_earlier_stages_wrote(manifest):
    curate, autoencoder, encode, train, sample = (config.paths for config in resolve(parse_run(manifest)))
    assert curate.output == "s3://videotrain/good/good/curate"
    assert autoencoder.clips == encode.clips == sample.clips == curate.output
    assert encode.autoencoder_weights == sample.autoencoder_weights == autoencoder.output
    assert train.latents == sample.latents == encode.output
    assert sample.model_weights == train.output
    assert train.clips is None and curate.clips is None and train.initial_weights is None


def test_a_second_train_stage_continues_from_the_first(manifest):
    more = copy.deepcopy(manifest["spec"]["stages"][3]) | {"name": "more"}
    manifest["spec"]["stages"].insert(4, more)
    assert resolve(parse_run(manifest))[4].paths.initial_weights == "s3://videotrain/good/good/train"
    more["train"]["initFrom"] = {"uri": "s3://weights/x.safetensors"}
    assert resolve(parse_run(manifest))[4].paths.initial_weights == "s3://weights/x.safetensors"
    more["train"]["initFrom"] = {"stage": "train"}
    assert resolve(parse_run(manifest))[4].paths.initial_weights == "s3://videotrain/good/good/train"
    more["train"]["initFrom"] = {}
    assert resolve(parse_run(manifest))[4].paths.initial_weights is None


def test_given_sets_and_weights_are_used_where_no_stage_makes_them(manifest):
    spec = manifest["spec"]
    spec["stages"] = spec["stages"][3:]
    spec["dataset"] = {"latents": "s3://sets/latents", "clips": "s3://sets/clips"}
    spec["model"]["weights"] = "s3://weights/model"
    spec["autoencoder"]["weights"] = "s3://weights/autoencoder"
    train, sample = (config.paths for config in resolve(parse_run(manifest)))
    assert (train.latents, train.initial_weights) == ("s3://sets/latents", "s3://weights/model")
    assert (sample.clips, sample.autoencoder_weights) == ("s3://sets/clips", "s3://weights/autoencoder")


def test_encode_knows_how_the_stages_that_read_it_choose(manifest):
    stages = manifest["spec"]["stages"]
    second = copy.deepcopy(stages[3]) | {"name": "second"}
    second["train"]["buckets"] = [
        {"resolution": "64px", "frames": 8, "batchSize": 9, "keepProbability": 0.5, "microBatches": 4},
        {"resolution": "128px", "frames": 4, "batchSize": 1},
    ]
    second["train"]["select"] = [{"score": "motion", "min": 2}]
    third = copy.deepcopy(stages[3]) | {"name": "third"}
    third["train"]["buckets"] = [{"resolution": "256px", "frames": 4, "batchSize": 1}]
    stages[4:4] = [second, {"name": "again", "task": "encode", "encode": {}}, third]
    configs = {config.stage.name: config for config in resolve(parse_run(manifest))}
    first, other = configs["encode"].latent_readers
    assert (first.stage, other.stage) == ("train", "second")
    assert (other.seed, other.select) == (configs["second"].seed, configs["second"].stage.train.select)
    found = [(b.resolution, b.frames, b.keep_probability, b.batch_size, b.micro_batches) for b in other.buckets]
    assert found == [("64px", 8, 0.5, 1, None), ("128px", 4, 1.0, 1, None)]
    assert [reader.stage for reader in configs["again"].latent_readers] == ["third"]
    assert configs["third"].paths.latents == configs["again"].paths.output
    assert configs["train"].latent_readers == []


def test_a_stage_selects_by_the_subset_that_it_names_and_the_encoder_knows(manifest):
    stages, plain = manifest["spec"]["stages"], resolve(parse_run(copy.deepcopy(manifest)))
    tiers = [{"name": "large", "select": [{"score": "motion", "min": 1}]}]
    tiers.append({"name": "small", "select": [{"score": "motion", "min": 2}, {"score": "text", "max": 0.01}]})
    manifest["spec"]["dataset"]["subsets"] = tiers
    stages[3]["train"]["subset"] = "large"
    second = copy.deepcopy(stages[3]) | {"name": "second"}
    second["train"] |= {"subset": "small", "select": [{"score": "blur", "min": 9}]}
    stages[4:4] = [second]
    configs = {config.stage.name: config for config in resolve(parse_run(manifest))}
    selected = [[(b.score, b.min, b.max) for b in configs[name].stage.train.select] for name in ("train", "second")]
    assert selected == [[("motion", 1, None)], [("motion", 2, None), ("text", None, 0.01), ("blur", 9, None)]]
    assert [reader.select for reader in configs["encode"].latent_readers] == [
        configs[name].stage.train.select for name in ("train", "second")
    ]
    assert configs["curate"].hash() == plain[0].hash()  # a subset changes only the stages that name it


def test_presets_are_filled_in_and_the_configuration_survives_the_wire(manifest):
    for config in resolve(parse_run(manifest)):
        assert config.model.hidden_size == 64 and config.autoencoder.widths == [8, 16, 32, 32, 128, 128]
        assert config.run == "default/good" and config.gpus_per_node == 2
        assert StageConfig.from_wire(config.to_wire()) == config
        assert StageConfig.from_wire(config.to_wire()).hash() == config.hash()


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"preset": "dc-ae-tiny"}, None),
        ({"preset": "dc-ae-tiny", "scalingFactor": 2.0}, 2.0),
        ({"preset": "dc-ae-f32t4c128"}, 0.493),
    ],
)
def test_only_the_scale_of_the_latents_may_be_left_to_the_weights(manifest, fields, factor):
    manifest["spec"]["autoencoder"] = fields
    configs = resolve(parse_run(manifest))
    assert [config.autoencoder.scaling_factor for config in configs] == [factor] * len(configs)
    assert all(config.autoencoder.latent_channels and config.autoencoder.widths for config in configs)


def test_node_bounds_do_not_change_the_hash_but_steps_do(manifest):
    before = [config.hash() for config in resolve(parse_run(manifest))]
    manifest["spec"]["nodes"] = {"min": 1, "max": 1}
    manifest["spec"]["stages"][3]["nodes"] = {"min": 1, "max": 2}
    assert [config.hash() for config in resolve(parse_run(manifest))] == before
    manifest["spec"]["stages"][3]["train"]["steps"] += 1
    after = [config.hash() for config in resolve(parse_run(manifest))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True]


def test_what_a_version_with_fewer_fields_has_frozen_keeps_its_hash(manifest):
    config = resolve(parse_run(manifest))[3]
    data = config.to_wire()
    del data["stage"]["train"]["text"]  # a field with a default
    older = StageConfig.from_stored(json.dumps(data).encode())
    assert older.stage.train.text == "stored"
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert older.canonical_json() == canonical
    assert older.hash() == hashlib.sha256(canonical.encode()).hexdigest()[:16] != config.hash()
    assert StageConfig.from_stored(config.canonical_json().encode()).hash() == config.hash()
    assert older.model_copy(update={"seed": 7}).hash() == config.model_copy(update={"seed": 7}).hash()


def test_seeds_differ_between_stages_and_runs_and_stay_the_same():
    assert stage_seed(42, "t") == 7650209248995257
    assert len({stage_seed(seed, name) for seed in range(20) for name in ("a", "b", "c")}) == 60
    assert 0 <= stage_seed(2**63 - 1, "x") < 2**53


def test_a_missing_input_names_the_stage_and_the_remedy(manifest):
    run = VideoTrainingRun.from_wire(manifest)
    stages = [stage for stage in run.spec.stages if stage.task != "encode"]
    broken = run.model_copy(update={"spec": run.spec.model_copy(update={"stages": stages})})
    with pytest.raises(ManifestError, match=r"spec.stages\[2\].task: 'train': needs latents: set spec.dataset.latents"):
        resolve(broken)


def test_a_run_without_a_transformer_needs_no_model(manifest):
    manifest["spec"]["stages"] = manifest["spec"]["stages"][:2]
    manifest["spec"]["model"] = {}
    assert [config.model.hidden_size for config in resolve(parse_run(manifest))] == [None, None]
