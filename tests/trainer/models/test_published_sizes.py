import re

import pytest
import torch

from videotrain_api.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.model.registry import (
    build_autoencoder,
    build_text_encoder,
    build_transformer,
    initialize,
)
from videotrain_trainer.model.weights import load_state, to_flux

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
            yield name.replace("*", str(index)), shape


@pytest.mark.parametrize("name", SIZES)
def test_full_size_transformers_have_exactly_the_published_tensors(name, fixture):
    preset, autoencoder, parameters = SIZES[name]
    published = fixture("manifest").facts["models"][name]
    with torch.device("meta"):
        model = build_transformer(TRANSFORMERS[preset], AUTOENCODERS[autoencoder], TextEncoderSpec())
    state = model.state_dict()
    ours = to_flux(state, model.config) if name == "flux_dev" else state
    assert {n: list(t.shape) for n, t in ours.items()} == dict(expand(published["tensors"], published["config"]))
    assert sum(p.numel() for p in model.parameters()) == parameters == published["parameters"]


def test_the_full_size_autoencoder_has_exactly_the_published_tensors(fixture):
    published = fixture("manifest").facts["models"]["video_dc_ae"]
    with torch.device("meta"):
        model = build_autoencoder(AUTOENCODERS["dc-ae-f32t4c128"])
    assert {n: list(t.shape) for n, t in model.state_dict().items()} == published["tensors"]
    assert sum(p.numel() for p in model.parameters()) == 459_462_147


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


def test_what_this_version_cannot_build_is_refused_with_its_field(tiny):
    with pytest.raises(ConfigError, match=re.escape("spec.autoencoder.kind: 'hunyuan-vae' is not available")):
        build_autoencoder(AUTOENCODERS["hunyuan-vae"])
    with pytest.raises(ConfigError, match=re.escape("spec.textEncoder.kind: 't5-clip' is not available")):
        build_text_encoder(TextEncoderSpec(kind="t5-clip"))
    with pytest.raises(ConfigError, match=re.escape("spec.model.patchSize: not set")):
        build_transformer(TransformerSpec(), AutoencoderSpec(), TextEncoderSpec())
    wrong = TRANSFORMERS["mmdit-tiny"].model_copy(update={"num_heads": 8})
    with pytest.raises(ConfigError, match="rope_axes"):
        build_transformer(wrong, AUTOENCODERS["dc-ae-tiny"], TextEncoderSpec())
    narrow = AUTOENCODERS["dc-ae-tiny"].model_copy(update={"widths": [8, 16, 16, 24, 32, 32]})
    with pytest.raises(ConfigError, match="multiples of the head dim 32"):
        build_autoencoder(narrow)
