import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.cost.flops import mmdit_shape, parameters
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks import initial
from videotrain_trainer.networks.build import build_autoencoder, build_transformer
from videotrain_trainer.networks.initial import initial_value, initialize, write_initial
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Destination, load_state, open_weights
from videotrain_trainer.networks.weights.layouts import scheme

SIZES = {
    "open_sora_v2": ("mmdit-11b", "hunyuan-vae", 11_891_390_528),
    "open_sora_v2_dc_ae": ("mmdit-11b-dcae", "dc-ae-f32t4c128", 11_891_971_200),
    "flux_dev": ("flux-dev", "hunyuan-vae", 11_901_408_320),
}


def expand(tensors, config):
    """Names with `*` stand for every block."""
    for name, shape in tensors.items():
        count = config["depth"] if name.startswith("double_blocks") else config["depth_single_blocks"]
        for index in range(count if "*" in name else 1):
            yield name.replace("*", str(index)), tuple(shape)


def on_meta(preset, autoencoder):
    with torch.device("meta"):
        return build_transformer(TRANSFORMERS[preset], AUTOENCODERS[autoencoder], TextEncoderSpec())


@pytest.mark.parametrize("name", SIZES)
def test_full_size_transformers_have_exactly_the_published_tensors(name, fixture):
    preset, autoencoder, count = SIZES[name]
    published = fixture("manifest").facts["models"][name]
    model = on_meta(preset, autoencoder)
    layout = "flux-dev" if name == "flux_dev" else "open-sora-v2"
    assert scheme(layout, model.config).theirs == dict(expand(published["tensors"], published["config"]))
    assert sum(p.numel() for p in model.parameters()) == count == published["parameters"]
    shape = mmdit_shape(TRANSFORMERS[preset], AUTOENCODERS[autoencoder], TextEncoderSpec())
    assert parameters(shape) == count


@pytest.mark.parametrize("name", SIZES)
def test_a_published_configuration_file_builds_its_model_under_its_own_names(name, fixture):
    published = fixture("manifest").facts["models"][name]
    with torch.device("meta"):
        model = MMDiT(MMDiTConfig.from_published(published["config"]))
    found = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert found == dict(expand(published["tensors"], published["config"]))


def test_without_the_condition_input_the_full_size_has_11_891_178_560_parameters():
    model = TRANSFORMERS["mmdit-11b"].model_copy(update={"cond_embed": False})
    with torch.device("meta"):
        built = build_transformer(model, AUTOENCODERS["hunyuan-vae"], TextEncoderSpec())
    assert sum(p.numel() for p in built.parameters()) == 11_891_178_560


@pytest.mark.parametrize(
    ("name", "preset", "count"),
    [("video_dc_ae", "dc-ae-f32t4c128", 459_462_147), ("hunyuan_vae", "hunyuan-vae", 246_478_803)],
)
def test_full_size_autoencoders_have_exactly_the_published_tensors(name, preset, count, fixture):
    published = fixture("manifest").facts["models"][name]
    with torch.device("meta"):
        model = build_autoencoder(AUTOENCODERS[preset])
    assert {n: list(t.shape) for n, t in model.state_dict().items()} == published["tensors"]
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.fixture
def tiny():
    text = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=24)
    return lambda: build_transformer(TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"], text)


def test_initial_weights_depend_on_the_seed_and_not_on_the_global_generator(tiny):
    models = []
    for noise, seed in ((1, 7), (2, 7), (3, 8)):
        torch.manual_seed(noise)
        models.append(tiny())
        initialize(models[-1], seed)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["img_in.weight"], other["img_in.weight"])
    assert not first["cond_in.weight"].any()
    assert not torch.equal(first["double_blocks.0.img_mlp.0.weight"], first["double_blocks.1.img_mlp.0.weight"])


def test_first_weights_do_not_depend_on_the_order_or_on_where_the_model_was_built(tiny):
    built = tiny()
    initialize(built, 7)
    with torch.device("meta"):
        empty = tiny()
    names = [name for name, _ in empty.named_parameters()]
    backwards = {name: initial_value(empty, name, 7) for name in reversed(names)}
    assert all(torch.equal(backwards[name], value) for name, value in built.state_dict().items())
    initialize(empty, 7)
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in empty.state_dict().items())
    assert not any(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize("preset", ["dc-ae-tiny"])
def test_first_weights_of_autoencoders_can_be_made_from_an_empty_model_too(preset):
    with torch.device("meta"):
        empty = build_autoencoder(AUTOENCODERS[preset])
    built = build_autoencoder(AUTOENCODERS[preset])
    for module in (empty, built):
        initialize(module, 3)
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in empty.state_dict().items())


@pytest.mark.parametrize("layout", ["open-sora-v2", "flux-dev", "diffusers"])
def test_writing_a_checkpoint_of_first_weights_never_holds_more_than_one_group(tiny, layout, tmp_path, monkeypatch):
    alive, most, made = weakref.WeakSet(), [0], []

    def counting(module, name, seed):
        value = initial_value(module, name, seed)
        alive.add(value.untyped_storage())
        made.append(name)
        most[0] = max(most[0], len(alive))
        return value

    monkeypatch.setattr(initial, "initial_value", counting)
    with torch.device("meta"):
        empty = tiny()
    gc.collect()
    files = write_initial(empty, 7, Destination(target=tmp_path, shard_bytes=100_000), layout, dtype=torch.float32)
    assert len(files) > 3
    assert all(parameter.is_meta for parameter in empty.parameters())
    # Queries, keys and values make one fused matrix; the group before is let go before the next is made.
    assert most[0] <= 3
    assert len(made) <= len(dict(empty.named_parameters())) + 2  # the two biases that diffusers adds up, once more


def test_a_streamed_checkpoint_has_the_weights_that_initialize_gives(tiny, tmp_path):
    built = tiny()
    initialize(built, 7)
    with torch.device("meta"):
        empty = tiny()
    told = []
    target = tmp_path / "first.safetensors"
    write_initial(empty, 7, Destination(target=target), "open-sora-v2", progress=lambda *at: told.append(at))
    found = load_file(target)
    assert found.keys() == built.state_dict().keys()
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in built.state_dict().items())
    assert told[-1][0] == told[-1][1] == 2 * sum(value.numel() for value in built.parameters())
    assert open_weights(target).shapes == {name: tuple(value.shape) for name, value in found.items()}


def test_a_fused_model_is_written_in_the_same_layouts(tiny, tmp_path):
    plain = tiny().config
    with torch.device("meta"):
        fused = MMDiT(replace(plain, fused_qkv=True, rope_layout="interleaved"))
    write_initial(fused, 7, Destination(target=tmp_path / "a.safetensors"), "flux-dev", dtype=torch.float32)
    initialize(fused, 7)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == fused.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in fused.state_dict().items())


@pytest.mark.parametrize(("preset", "autoencoder", "_"), SIZES.values())
def test_the_group_that_streaming_holds_at_11b_is_below_400_megabytes(preset, autoencoder, _):
    config = on_meta(preset, autoencoder).config
    for layout in ("open-sora-v2", "flux-dev", "diffusers"):
        stored = scheme(layout, config)
        elements = [sum(torch.Size(stored.ours[name]).numel() for name in rule.ours) for rule in stored.rules]
        assert max(elements) * 4 <= 400e6


def test_loading_lists_every_missing_unexpected_and_misshapen_tensor(tiny):
    model = tiny()
    state = dict(model.state_dict())
    state["img_in.bias"] = torch.zeros(3)
    state["extra.weight"] = state.pop("txt_in.weight")
    with pytest.raises(ConfigError) as caught:
        load_state(model, state, "s3://bucket/model.safetensors")
    text = str(caught.value)
    assert text.startswith("s3://bucket/model.safetensors: 3 of ")
    assert "missing: txt_in.weight [64, 32]" in text
    assert "unexpected: extra.weight [64, 32]" in text
    assert "misshapen: img_in.bias is [3] in the file, [64] in the model" in text


def test_what_cannot_be_built_is_refused_with_its_field(tiny):
    with pytest.raises(ConfigError, match=re.escape("spec.model.patchSize: not set")):
        build_transformer(TransformerSpec(), AutoencoderSpec(), TextEncoderSpec())
    wrong = TRANSFORMERS["mmdit-tiny"].model_copy(update={"num_heads": 8})
    with pytest.raises(ConfigError, match="rope_axes"):
        build_transformer(wrong, AUTOENCODERS["dc-ae-tiny"], TextEncoderSpec())
    narrow = AUTOENCODERS["dc-ae-tiny"].model_copy(update={"widths": [8, 16, 16, 24, 32, 32]})
    with pytest.raises(ConfigError, match="multiples of the head dim 32"):
        build_autoencoder(narrow)
    uneven = AUTOENCODERS["hunyuan-vae"].model_copy(update={"widths": [128, 256, 500, 512]})
    with pytest.raises(ConfigError, match="must be multiples of norm_groups 32"):
        build_autoencoder(uneven)
