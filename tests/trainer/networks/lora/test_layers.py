import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapter_worlds import adapter_stage, assert_adapter_alone, assert_merged, base_weights
from support.model_fixtures import forward, forward_in_float64, transformer
from support.numerics import apart, assert_as_exact, rounding
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    difference,
    final_weights,
    run_world,
)

from videotrain_api.resource.stages import ParallelLayout
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.lora.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from videotrain_trainer.networks.lora.layers import TARGETS, LoraConfig, adapted, initialize_adapter, inject, merge
from videotrain_trainer.networks.weights import open_weights

pytestmark = pytest.mark.numeric

CONFIG = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture
def model(fixture):
    """A fresh model of the fixture: adapting changes it."""
    return transformer(fixture("mmdit_i2v"))


def trained(model, seed=3):
    """An adapter whose B is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.lora_B.weight.copy_(0.1 * torch.randn(layer.lora_B.weight.shape, generator=generator))
    return model


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_trains_alone(model, fixture):
    found = fixture("mmdit_i2v")
    before, names = forward(model, found), set(model.state_dict())
    inject(model, CONFIG)
    initialize_adapter(model, 1)
    assert not any(layer.lora_B.weight.any() for layer in adapted(model).values())
    # Nothing is added, but the sum lies in memory in another order, and so may a kernel behind it add.
    assert_as_exact(forward(model, found), before, forward_in_float64(model, found))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == set(model.state_dict()) - names
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in learning)


def test_only_blocks_are_adapted_and_every_target_is_found(model):
    layers = inject(model, CONFIG)
    assert {name.split(".")[0] for name in layers} == {"double_blocks", "single_blocks"}
    # Two-stream blocks: q, k, v, proj of both streams, two feed-forward layers; one-stream: q, k, v_mlp, linear2.
    assert len(layers) == 2 * (8 + 2) + 2 * 4
    assert "double_blocks.0.txt_mlp.0" not in layers


def test_first_values_depend_on_the_seed_and_the_name_alone(model, fixture):
    other = transformer(fixture("mmdit_i2v"))
    for number, each in enumerate((model, other)):
        inject(each, CONFIG)
        torch.manual_seed(number)
        initialize_adapter(each, 1)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_merging_keeps_the_output_and_the_published_names(model, fixture):
    found, names = fixture("mmdit_i2v"), set(model.state_dict())
    inject(model, CONFIG)
    initialize_adapter(model, 1)
    plain = forward(model, found)
    output = forward(trained(model), found)
    assert apart(output, plain) > 1000 * rounding(plain)  # the adapter is seen at all
    exact = forward_in_float64(model, found)
    merge(model)
    assert set(model.state_dict()) == names
    assert_as_exact(forward(model, found), output, exact)
    assert type(model.double_blocks[0].img_attn.q_proj) is torch.nn.Linear


@torch.no_grad()
def test_the_files_are_pefts_and_come_back(model, fixture, tmp_path):
    found = fixture("mmdit_i2v")
    inject(model, CONFIG)
    initialize_adapter(model, 1)
    output = forward(trained(model), found)
    save_adapter(model, CONFIG, tmp_path, base="s3://bucket/base.safetensors")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {fields[name] for name in ("peft_type", "r", "lora_alpha", "bias")} == {"LORA", 4, 8.0, "none"}
    assert fields["target_modules"] == list(TARGETS)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored["base_model.model.single_blocks.1.linear2.lora_A.weight"].shape == (4, 64 + 256)
    assert stored["base_model.model.single_blocks.1.linear2.lora_B.weight"].shape == (64, 4)
    other = transformer(found)
    assert load_adapter(other, tmp_path) == CONFIG
    assert torch.equal(forward(other, found), output)
    merge(other)
    loaded = models.load(found.weights, model=other.config, adapter=tmp_path, dtype=torch.float32)
    assert torch.equal(forward(loaded, found), forward(other, found))


def test_adapters_that_do_not_fit_are_refused_with_the_reason(model, fixture, tmp_path):
    inject(model, CONFIG)
    save_adapter(model, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="already has an adapter"):
        inject(model, CONFIG)
    with pytest.raises(ConfigError, match=r"LoRA targets \['querry'\]: no linear layer .* it has .*img_attn.k_proj"):
        inject(transformer(fixture("mmdit_i2v")), LoraConfig(rank=2, alpha=2.0, targets=("querry", "k_proj")))
    stored = load_file(tmp_path / ADAPTER_WEIGHTS)
    lost = next(iter(stored))
    save_file({name: value for name, value in stored.items() if name != lost}, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(ConfigError, match=f"missing: {lost}"):
        load_adapter(transformer(fixture("mmdit_i2v")), tmp_path)
    fields = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only plain LORA"),
        ({"use_dora": True}, "use_dora is True"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is set"),
        ({"target_modules": ".*proj"}, "a list of names is needed, not a pattern"),
        ({"r": None}, "not the configuration of a LoRA adapter"),
    ):
        (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(fields | change))
        with pytest.raises(ConfigError, match=message):
            load_adapter(transformer(fixture("mmdit_i2v")), tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The weights that are adapted."""
    return base_weights(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents, base):
    folder = tmp_path_factory.mktemp("alone")
    result = run_world(folder, adapter_stage(folder, latents, base), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder


def test_a_train_stage_writes_the_merged_model_and_the_adapter_beside_it(alone, base):
    assert_merged(alone, base)
    fields = json.loads((alone / "stage/weights/adapter" / ADAPTER_CONFIG).read_text())
    assert fields["base_model_name_or_path"] == f"file://{base}"
    for name in ("model.safetensors", f"adapter/{ADAPTER_WEIGHTS}"):
        files = open_weights(alone / "stage/weights" / name).files.values()
        assert all(file.checksums for file in files), "whoever reads them verifies them"


def test_checkpoints_hold_the_adapter_alone(alone):
    assert_adapter_alone(alone)


def test_a_killed_adapter_stage_goes_on_to_the_same_result_under_the_other_engine(tmp_path, latents, base, alone):
    config = adapter_stage(tmp_path, latents, base)
    killed = run_world(tmp_path, config, 1, Plan(kill_after=5))
    assert killed.outcomes == ["killed"]
    layout = ParallelLayout(micro_batches_per_step=4, engine="fsdp2")
    config = adapter_stage(tmp_path, latents, base, parallel=layout)
    result = run_world(tmp_path, config, 2, Plan(generation=2))
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert result.started.resumed_step == 3
    assert difference(final_weights(tmp_path), final_weights(alone)) < 1e-3 * LEARNING_RATE  # see test_worlds_agree


def test_an_adapter_without_weights_to_start_from_is_a_configuration_error(tmp_path, latents):
    layout = ParallelLayout(micro_batches_per_step=4)
    result = run_world(tmp_path, adapter_stage(tmp_path, latents, None, parallel=layout), 1)
    assert result.codes == [ExitCode.CONFIG]
    assert "train.lora: an adapter needs weights to start from" in result.outcomes[0]
