"""Models that begin with the weights of others."""

import pytest
import torch
from safetensors.torch import save_file
from support.numerics import assert_as_exact, in_float64

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.adaptation import adapt_transformer, inflate, start_from_image
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.networks.weights.convert import convert
from videotrain_trainer.networks.weights.writer import Destination

pytestmark = pytest.mark.numeric

TEXT = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=32)
VIDEO = AUTOENCODERS["dc-ae-tiny"]


def video_model(seed, **changes):
    module = build_autoencoder(VIDEO.model_copy(update=changes))
    initialize(module, seed)
    return module


def image_weights(latent_channels=64):
    """An image DC-AE: the video one with the middle frames of its kernels."""
    state = video_model(1, latent_channels=latent_channels).state_dict()
    flat = {name: tensor[:, :, tensor.shape[2] // 2] if tensor.ndim == 5 else tensor for name, tensor in state.items()}
    return {name: tensor.contiguous() for name, tensor in flat.items()}


def stored(tmp_path, state):
    path = tmp_path / "image.safetensors"
    save_file(state, path)
    return path


def picture():
    return torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_kernel_lies_in_the_middle_frame():
    kernel = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(inflate(kernel, 3)[0, 0], torch.stack([torch.zeros(2, 2), kernel[0, 0], torch.zeros(2, 2)]))
    assert torch.equal(inflate(kernel, 1), kernel[:, :, None])


def test_pictures_are_encoded_and_decoded_as_by_the_image_autoencoder(tmp_path):
    image, module = video_model(1), video_model(2)
    start_from_image(module, stored(tmp_path, image_weights()))
    with torch.no_grad():
        # Of a single frame only the middle of a kernel sees anything, so the donor itself is the image autoencoder.
        assert_as_exact(module(picture()), image(picture()), in_float64(image, picture()))


def test_every_frame_of_a_stage_without_time_is_treated_as_a_picture(tmp_path):
    module = video_model(2)
    start_from_image(module, stored(tmp_path, image_weights()))
    clip = torch.rand(1, 3, 4, 32, 32)
    first = module.encoder.stages[0]
    with torch.no_grad():
        whole = first(module.encoder.project_in(clip))
        apart = torch.cat([first(module.encoder.project_in(clip[:, :, t : t + 1])) for t in range(4)], dim=2)
    assert_as_exact(whole, apart, in_float64(torch.nn.Sequential(module.encoder.project_in, first), clip))


def test_other_latent_channels_make_the_layers_at_the_latents_new(tmp_path, caplog):
    module, fresh = video_model(2), video_model(2).state_dict()
    with caplog.at_level("INFO"):
        start_from_image(module, stored(tmp_path, image_weights(latent_channels=32)))
    found, image = module.state_dict(), image_weights()
    new = ["encoder.project_out.main.op_list.0.conv.weight", "decoder.project_in.main.conv.weight"]
    assert all(torch.equal(found[name], fresh[name]) for name in new)
    assert "new layers: encoder.project_out" in caplog.text
    kept = "encoder.stages.5.op_list.0.context_module.main.qkv.conv.weight"
    assert torch.equal(found[kept][:, :, 0], image[kept])


def test_a_missing_tensor_is_named(tmp_path):
    state = image_weights()
    del state["decoder.project_out.op_list.0.bias"]
    with pytest.raises(ConfigError, match=r"missing: decoder\.project_out\.op_list\.0\.bias \[8\]"):
        start_from_image(video_model(2), stored(tmp_path, state))


def test_another_width_is_listed(tmp_path):
    wide = video_model(2, widths=[16, 16, 32, 32, 128, 128])
    with pytest.raises(ConfigError) as caught:
        start_from_image(wide, stored(tmp_path, image_weights()))
    assert "misshapen: encoder.project_in.conv.bias is [8] in the file, [16] in the model" in str(caught.value)


def test_the_layout_of_diffusers_starts_the_same_model(tmp_path):
    first, second = video_model(2), video_model(3)
    start_from_image(first, stored(tmp_path, image_weights()))
    target = Destination(target=tmp_path / "d.safetensors")
    convert(tmp_path / "image.safetensors", target, "image-dc-ae", "diffusers-image-dc-ae")
    start_from_image(second, tmp_path / "d.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_video_model_is_no_image_model(tmp_path):
    with pytest.raises(ConfigError, match=r"layout open-sora-dc-ae, not an image DC-AE.*initFrom\.adapt"):
        start_from_image(video_model(2), stored(tmp_path, video_model(1).state_dict()))


def transformer(preset, autoencoder, seed):
    module = build_transformer(TRANSFORMERS[preset], autoencoder, TEXT)
    initialize(module, seed)
    return module


@pytest.fixture
def trained():
    """A transformer with patches of 2 x 2 for an autoencoder of 16 channels, its condition input trained."""
    module = transformer("mmdit-tiny", VIDEO.model_copy(update={"latent_channels": 16}), 1)
    torch.nn.init.normal_(module.cond_in.weight)
    return module


def test_a_transformer_keeps_all_but_the_layers_at_its_latents(tmp_path, trained):
    path = stored(tmp_path, trained.state_dict())
    latents = VIDEO.model_copy(update={"latent_channels": 128})
    module, fresh = (transformer("mmdit-tiny-dcae", latents, 2) for _ in range(2))
    adapt_transformer(module, path)
    new = ("img_in.", "cond_in.", "final_layer.linear.")
    assert module.img_in.weight.shape == (64, 128)
    assert not module.cond_in.weight.any()
    for name, tensor in module.state_dict().items():
        source = fresh if name.startswith(new) else trained
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert sum(name.startswith(new) for name in module.state_dict()) == 6


def test_layers_at_the_latents_are_new_even_if_their_sizes_happen_to_fit(tmp_path, trained):
    # 16 channels in patches of 2 x 2 and 64 in patches of 1 have the same 64 numbers, which mean different things.
    module, fresh = (transformer("mmdit-tiny-dcae", VIDEO, 2) for _ in range(2))
    assert module.img_in.weight.shape == trained.img_in.weight.shape
    adapt_transformer(module, stored(tmp_path, trained.state_dict()))
    assert torch.equal(module.img_in.weight, fresh.img_in.weight)


def test_a_transformer_of_another_depth_is_refused_with_the_list(tmp_path, trained):
    state = {name: tensor for name, tensor in trained.state_dict().items() if "double_blocks.1." not in name}
    with pytest.raises(ConfigError, match=r"missing: double_blocks\.1\."):
        adapt_transformer(transformer("mmdit-tiny-dcae", VIDEO, 2), stored(tmp_path, state))
