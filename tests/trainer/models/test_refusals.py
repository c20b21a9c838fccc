"""Arguments that cannot be drawn or coded with are refused with the field, the value and what is allowed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_trainer import cli, models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.sampling.draw import noise_of
from videotrain_trainer.text.byte_encoder import ByteTextEncoder

SIZE = {"height": 32, "width": 32, "frames": 8}


@pytest.fixture(scope="module")
def parts():
    autoencoder = models.build(AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=1.0))
    return models.build("mmdit-tiny-dcae"), autoencoder, ByteTextEncoder(64, 32, 64)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "whole numbers from 1 on"),
        ("steps", -1, "whole numbers from 1 on"),
        ("steps", 2.0, "whole numbers from 1 on"),
        ("height", 0, "whole numbers from 1 on"),
        ("width", -32, "whole numbers from 1 on"),
        ("frames", 0, "whole numbers from 1 on"),
        ("seed", -1, "whole numbers from 0 to 18446744073709551615"),
        ("seed", 2**64, "whole numbers from 0 to 18446744073709551615"),
        ("shift", -1, "None or a number above 0"),
        ("shift", 0, "None or a number above 0"),
        ("fps", -3, "None or a number above 0"),
        ("fps", math.nan, "None or a number above 0"),
        ("motion_score", -0.5, "None or a number from 0 on"),
        ("guidance", -7.5, "None or a number from 0 on"),
        ("guidance", "7.5", "None or a number from 0 on"),
        ("guidance", models.Guidance(text=1.0, image=math.inf), "None or a number from 0 on"),
        ("prompt_style", "x", "plain"),
        ("posterior", "mean", "mode, sample"),
        ("condition", "i2v", "t2v, i2v_head"),
    ],
)
def test_an_option_that_can_never_be_drawn_with_is_refused_when_it_is_made(field, value, allowed):
    with pytest.raises(ValueError, match=rf"^{field}.*allowed: .*{allowed}"):
        models.SampleOptions(**(SIZE | {field: value}))


@given(st.integers(0, 2**64 - 1))
def test_every_seed_that_is_allowed_makes_noise(seed):
    models.SampleOptions(**SIZE, seed=seed)
    assert noise_of(seed, (2, 2)).isfinite().all()


def test_seeds_that_follow_the_last_one_begin_anew():
    assert torch.equal(noise_of(2**64, (3,)), noise_of(0, (3,)))


@pytest.mark.parametrize("side", [16, 33, 48])
def test_sides_that_the_models_cannot_draw_are_refused(parts, side):
    with pytest.raises(ValueError, match=f"{side} x 32 pixels: both must be multiples of 32"):
        models.sample(*parts, "A cat.", models.SampleOptions(**(SIZE | {"height": side})))


@pytest.mark.parametrize(("context", "pooled"), [(32, 32), (64, 16)])
def test_a_text_encoder_of_other_widths_is_refused_with_both(parts, context, pooled):
    other = ByteTextEncoder(context, pooled, 64)
    message = f"gives features of {context} and {pooled} numbers, the transformer takes 64 and 32"
    with pytest.raises(ValueError, match=message):
        models.sample(*parts[:2], other, "A cat.", models.SampleOptions(**SIZE))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8), r"a video of torch.uint8: floating-point numbers are needed"),
        (torch.zeros(1, 4, 8, 32, 32), r"a video of shape \[1, 4, 8, 32, 32\]: it must be \(B, 3, T, H, W\)"),
        (torch.zeros(3, 8, 32, 32), r"a video of shape \[3, 8, 32, 32\]: it must be \(B, 3, T, H, W\)"),
        (torch.zeros(0, 3, 8, 32, 32), "with B from 1 on"),
        (torch.zeros(1, 3, 7, 32, 32), "7"),
        (torch.zeros(1, 3, 8, 30, 32), "30"),
    ],
)
def test_what_is_no_video_is_not_encoded(parts, video, message):
    with pytest.raises(ValueError, match=message):
        models.encode(parts[1], video)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 64, 2, 1, 1, dtype=torch.int64), "latents of torch.int64: floating-point numbers are needed"),
        (torch.zeros(1, 16, 2, 1, 1), r"latents of shape \[1, 16, 2, 1, 1\]: it must be \(B, 64, T, H, W\)"),
    ],
)
def test_what_are_no_latents_is_not_decoded(parts, latents, message):
    with pytest.raises(ValueError, match=message):
        models.decode(parts[1], latents)


def test_a_reference_of_whole_numbers_is_refused(parts):
    options = models.SampleOptions(**SIZE, condition="i2v_head")
    with pytest.raises(ValueError, match=r"torch.uint8: it must be \[3, 1, 32, 32\], floating-point numbers"):
        models.sample(*parts, "A cat.", options, reference_CFHW=torch.zeros(3, 1, 32, 32, dtype=torch.uint8))


def test_weights_in_eight_bits_say_how_they_are_loaded(tmp_path):
    model = models.build("mmdit-tiny")
    path = tmp_path / "fp8.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in model.state_dict().items()}, path)
    with pytest.raises(ConfigError, match=r"stored as torch.float8_e4m3fn, .*; give dtype=torch.bfloat16"):
        models.load(path)
    assert models.load(path, dtype=torch.bfloat16).img_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_names_with_a_prefix_of_a_wrapper_stay_refused(prefix, tmp_path):
    path = tmp_path / "wrapped.safetensors"
    save_file({prefix + name: value for name, value in models.build("mmdit-tiny").state_dict().items()}, path)
    with pytest.raises(ConfigError, match=rf"no known layout has its tensor names \(such as {prefix}"):
        models.load(path)


def test_convert_says_that_a_video_is_no_weight_file(tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"video")
    flags = ["convert", str(tmp_path / "clip.mp4"), str(tmp_path / "out"), "--from", "flux-dev", "--to", "diffusers"]
    assert cli.main(flags) != 0
    assert "clip.mp4: not a weight file: its name must end with .safetensors or" in capsys.readouterr().err


class TestTextEncoder:
    def test_one_is_loaded_by_the_name_of_the_transformer(self, parts):
        encoder = models.load_text_encoder("mmdit-tiny-dcae")
        assert models.sample(*parts[:2], encoder, "A cat.", models.SampleOptions(**SIZE, steps=1)).shape[0] == 8

    def test_or_by_a_specification(self):
        encoder = models.load_text_encoder(TextEncoderSpec(context_dim=24, pooled_dim=8, max_tokens=5))
        assert encoder.encode(["A cat."]).context_BLD.shape == (1, 5, 24)

    def test_what_it_cannot_load_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="preset 'hunyuan-vae' is no transformer; allowed: mmdit-11b"):
            models.load_text_encoder("hunyuan-vae")
        with pytest.raises(ConfigError, match="of kind 'bytes' has no weights"):
            models.load_text_encoder("mmdit-tiny", tmp_path)
        with pytest.raises(ConfigError, match=r"exactly one folder with a config\.json of model_type 't5'"):
            models.load_text_encoder("mmdit-11b", tmp_path)
        with pytest.raises(ConfigError, match="kind t5-clip needs the folder with both encoders"):
            models.load_text_encoder("mmdit-11b")
