import pytest
import torch
from support.autoencoders import clip, hunyuan_vae_of, tiny_vae
from support.model_fixtures import Fixture
from support.numerics import assert_as_exact, assert_near, in_float64

from videotrain_trainer.networks.autoencoders import hunyuan_vae
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAEConfig, frame_causal_attention
from videotrain_trainer.networks.autoencoders.tiling import Tiling

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def found():
    return Fixture("hunyuan_vae")


@pytest.fixture(scope="module")
def model(found):
    return hunyuan_vae_of(found)


def published_tiling(found, time):
    facts = found.facts["tiling"]
    frames = facts["temporal_tile_frames"] if time else None
    return Tiling(pixels=facts["spatial_tile_px"], frames=frames, overlap=facts["overlap"])


def watch(modules, run):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        for name, module in modules.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_the_posterior_of_a_clip_and_what_lies_before_it_are_the_published_ones(found, model):
    encoder = model.encoder
    modules = {f"mid.enc_down{i}": encoder.down_blocks[i] for i in (1, 2, 3)}
    modules |= {"mid.enc_mid_attn": encoder.mid_block.attentions[0], "mid.enc_mid": encoder.mid_block}
    seen = watch(modules, lambda: found.check("video.mean", model.posterior(found["video.in"]).mean_BCTHW))
    found.check("video.logvar", model.posterior(found["video.in"]).logvar_BCTHW)
    seen["mid.enc_mid_attn"] = seen["mid.enc_mid_attn"].flatten(2).transpose(1, 2)
    assert len(seen) == 5
    for name, value in seen.items():
        found.check(name, value)


def test_latents_are_the_scaled_mode_or_a_sample_of_the_posterior(found, model):
    found.check("video.z_mode", model.encode(found["video.in"]))
    found.check("video.z", model.encode(found["video.in"], found["video.noise"]))
    shifted = hunyuan_vae_of(found, shift_factor=0.25)
    plain = model.encode(found["video.in"])
    expected = plain - 0.476986 * 0.25
    assert_near(shifted.encode(found["video.in"]), expected, 4)  # scaled after the shift, not before: a few roundings
    decoded = in_float64(model, plain, method="decode")
    assert_as_exact(shifted.decode(expected), model.decode(plain), decoded)


def test_decoding_gives_the_published_pixels_and_intermediate_values(found, model):
    modules = {"mid.dec_mid": model.decoder.mid_block, "mid.dec_up0": model.decoder.up_blocks[0]}
    seen = watch(modules, lambda: found.check("latent.decoded", model.decode(found["latent.in"])))
    for name, value in seen.items():
        found.check(name, value)


def test_pictures_are_clips_of_one_frame(found, model):
    posterior = model.posterior(found["image.in"])
    found.check("image.mean", posterior.mean_BCTHW)
    found.check("image.logvar", posterior.logvar_BCTHW)
    found.check("image.z", model.encode(found["image.in"], found["image.noise"]))
    found.check("image_latent.decoded", model.decode(found["image_latent.in"]))


def test_spatial_tiles_give_the_published_moments_and_pixels(found):
    model = hunyuan_vae_of(found, tiling=published_tiling(found, time=False))
    posterior = model.posterior(found["tile_spatial.in"])
    found.check("tile_spatial.mean", posterior.mean_BCTHW)
    found.check("tile_spatial.logvar", posterior.logvar_BCTHW)
    found.check("tile_spatial.decoded", model.decode(found["tile_spatial.latent"]))


def test_tiles_in_time_and_space_give_the_published_moments_and_pixels(found):
    model = hunyuan_vae_of(found, tiling=published_tiling(found, time=True))
    posterior = model.posterior(found["tile_time_space.in"])
    found.check("tile_time_space.mean", posterior.mean_BCTHW)
    found.check("tile_time_space.logvar", posterior.logvar_BCTHW)
    found.check("tile_time.decoded", model.decode(found["tile_time.latent"]))


def masked_attention(q, k, v, positions):
    frame = torch.arange(q.shape[1]) // positions
    mask = frame[None, :] <= frame[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask)[:, 0]


@pytest.mark.parametrize("most", [2**27, 40])
def test_frame_causal_attention_is_a_dense_mask_without_the_mask(monkeypatch, most):
    monkeypatch.setattr(hunyuan_vae, "MAX_LOGITS", most)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 5 * 6, 8, generator=generator) for _ in range(3))
    exact = masked_attention(q.double(), k.double(), v.double(), 6)
    assert_as_exact(frame_causal_attention(q, k, v, 6), masked_attention(q, k, v, 6), exact)


class LargestTensor(torch.overrides.TorchFunctionMode):
    """Notes the most values that any result of a torch function has."""

    def __init__(self):
        self.values = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.values = max(self.values, out.numel())
        return out


def test_no_tensor_of_the_mid_block_grows_with_the_square_of_the_frames():
    sizes = []
    for frames in (4, 8, 16):
        block = hunyuan_vae.FrameCausalAttention(8, groups=2).requires_grad_(False)
        with LargestTensor() as seen:
            block(torch.zeros(1, 8, frames, 6, 6))
        sizes.append(seen.values)
    assert sizes[1] == 2 * sizes[0]
    assert sizes[2] == 4 * sizes[0]


def test_a_convolution_in_pieces_is_the_whole_one(monkeypatch):
    model, video = tiny_vae(), clip(1, 3, 9, 16, 16)
    with torch.no_grad():
        whole = model.posterior(video)
        decoded = model.decode(whole.mean_BCTHW)
        monkeypatch.setattr(hunyuan_vae, "MAX_CONV_VALUES", 3000)
        pieces = model.posterior(video)
        exact = in_float64(model, video, method="posterior").mean_BCTHW
        assert_as_exact(pieces.mean_BCTHW, whole.mean_BCTHW, exact)
        exact = in_float64(model, whole.mean_BCTHW, method="decode")
        assert_as_exact(model.decode(whole.mean_BCTHW), decoded, exact)


def test_without_gradients_the_results_are_those_with_gradients():
    model, video = tiny_vae().requires_grad_(True), clip(1, 3, 5, 16, 16)
    kept = video.clone()
    with torch.no_grad():
        quick = model(video)
    assert torch.equal(video, kept)
    assert_as_exact(quick, model(video), in_float64(model, video))


def test_every_parameter_learns():
    model = tiny_vae().requires_grad_(True)
    model(clip(1, 3, 5, 16, 16)).square().mean().backward()
    logvar = {f"{layer}.{kind}" for layer in ("quant_conv",) for kind in ("weight", "bias")}
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent - logvar == set()


@pytest.mark.parametrize("shape", [(1, 3, 2, 16, 16), (1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 17)])
def test_clips_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"frames must be 1 \+ 4k, rows and columns multiples of 8"):
        tiny_vae().encode(torch.zeros(shape))


def test_sizes_that_do_not_fit_together_are_refused():
    facts = {"latent_channels": 4, "depths": (1, 1, 1), "decoder_depths": (1, 1, 1)}
    with pytest.raises(ValueError, match=r"must be multiples of norm_groups 32; \[40\] are not"):
        HunyuanVAEConfig(widths=(32, 40, 64), **facts)
    with pytest.raises(ValueError, match="same length of at least 3"):
        HunyuanVAEConfig(widths=(32, 32), **facts)
