"""The drawing core: shift, branches, progress, scorers, causal autoencoders, and the sample stage that uses it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.numerics import assert_near
from support.sampling import config_of, context_of
from support.sampling_folder import make_folder

from videotrain_api.config.presets import TRANSFORMERS, complete_autoencoder
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_api.resource.stages import Prompt
from videotrain_trainer.diffusion.conditioning import Given
from videotrain_trainer.diffusion.sampler import Guidance, Sampler, TextPair, frame_scales, text_scale
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.sampling.draw import SamplingPipeline, latent_shape
from videotrain_trainer.sampling.loaded import Models, Sources
from videotrain_trainer.sampling.outputs import read_metadata
from videotrain_trainer.sampling.references import to_uint8
from videotrain_trainer.sampling.request import Request, Settings
from videotrain_trainer.sampling.scorers import BUILT_IN, load_scorer, motion, sharpness, steadiness
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import sample
from videotrain_trainer.text.encoders import load_text_encoder

pytestmark = pytest.mark.numeric


def text_of(model, tokens=4):
    generator = torch.Generator().manual_seed(3)
    config = model.config
    return TextPair(
        context_BLD=torch.randn(1, tokens, config.context_dim, generator=generator),
        pooled_BP=torch.randn(1, config.pooled_dim, generator=generator),
        negative_context_BLD=torch.randn(1, tokens, config.context_dim, generator=generator),
        negative_pooled_BP=torch.randn(1, config.pooled_dim, generator=generator),
    )


@pytest.fixture(scope="module")
def model(mmdit):
    return mmdit("mmdit_i2v").eval()


def noise_for(model, frames=3, rows=4, columns=6):
    channels = model.config.in_channels // model.config.patch_size**2
    return torch.randn(1, channels, frames, rows, columns, generator=torch.Generator().manual_seed(1))


def test_branches_one_by_one_or_together_draw_the_same(model):
    noise, text = noise_for(model), text_of(model)
    given = Given(torch.randn(noise.shape[1], 1, 4, 6))
    guidance = Guidance(text=5.0, image=2.0)
    together = Sampler(model, 3, guidance).draw(noise, text, "i2v_head", given)
    rows = []
    hook = model.register_forward_pre_hook(lambda _m, _a, kw: rows.append(len(kw["img_BNI"])), with_kwargs=True)
    alone = Sampler(model, 3, guidance, one_by_one=True).draw(noise, text, "i2v_head", given)
    hook.remove()
    assert rows == [1] * 9
    # Guidance multiplies the roundings of three branches, some four of a pass each, by 5 + 3 + 1.
    assert_near(alone, together, 4 * 9)


def test_an_explicit_shift_replaces_the_one_by_size_and_every_step_is_told(model):
    seen, told = [], []
    hook = model.register_forward_pre_hook(
        lambda _m, _a, kw: seen.append(kw["timesteps_B"][0].item()), with_kwargs=True
    )
    sampler = Sampler(model, 4, Guidance(text=1.0, image=1.0), shift=3.0)
    sampler.draw(noise_for(model), text_of(model), "t2v", Given(), lambda done, steps: told.append((done, steps)))
    hook.remove()
    assert seen == pytest.approx([1.0, 0.9, 0.75, 0.5])
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_each_part_of_guidance_can_be_switched_off_alone():
    full = Guidance(text=7.5, image=3.0)
    assert text_scale(full, 11) == 1.0
    assert text_scale(replace(full, oscillate_text=False), 11) == 7.5
    assert frame_scales(replace(full, oscillate_text=False), 11, 50, 3, "i2v_head").tolist() == [1.0] * 3
    kept = frame_scales(replace(full, oscillate_image=False), 11, 50, 3, "i2v_head")
    assert kept[0] == 1.0
    assert kept[2] > 2.0
    assert frame_scales(replace(full, dynamic_image=False), 12, 50, 3, "i2v_head").tolist() == [3.0] * 3
    assert frame_scales(full, 12, 50, 3, "v2v_head").tolist() == [3.0] * 3


def test_given_frames_are_in_the_result_exactly(model):
    noise = noise_for(model, frames=4)
    head, tail = torch.randn(noise.shape[1], 1, 4, 6), torch.randn(noise.shape[1], 1, 4, 6)
    drawn = Sampler(model, 2, Guidance(text=2.0, image=2.0)).draw(noise, text_of(model), "i2v_loop", Given(head, tail))
    assert torch.equal(drawn[0, :, :1], head)
    assert torch.equal(drawn[0, :, -1:], tail)


def test_scorers_tell_flicker_motion_and_blur():
    ramp = np.tile(np.arange(48, dtype=np.uint8) * 4, (32, 1))
    still = np.repeat(np.stack([ramp] * 6)[..., None], 3, axis=-1)
    flicker = still.copy()
    flicker[1::2] = flicker[1::2] // 2
    moving = np.stack([np.roll(still[0], 2 * t, axis=1) for t in range(6)])
    noisy = np.random.default_rng(1).integers(0, 255, still.shape, dtype=np.uint8)
    assert steadiness(still, "") == 0.0
    assert steadiness(flicker, "") < -20
    assert motion(still, "") == 0.0
    assert motion(moving, "") > 2
    assert sharpness(noisy, "") > sharpness(still, "")
    assert steadiness(still[:2], "") == motion(still[:1], "") == 0.0


def test_built_in_scorers_are_those_that_a_stage_may_name():
    from typing import get_args

    from videotrain_api.resource.stages import Scorer

    assert set(BUILT_IN) == set(get_args(Scorer))


@pytest.mark.parametrize("name", ["no.such.module:score", "json:no_such", "json:__name__"])
def test_scorers_that_cannot_be_used_are_refused(name):
    with pytest.raises(ConfigError, match=f"scorer: '{name}'"):
        load_scorer(name)


def test_pixels_are_rounded_and_clamped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255]


def request_of(settings, **changes):
    fields = {"prompt": "a", "text": "a", "seed": 1, "settings": settings, "models": "m"}
    return Request(**(fields | changes))


SETTINGS = Settings(width=64, height=64, frames=9, fps=24, steps=2, text_guidance=2.0, image_guidance=2.0)


def test_everything_that_pixels_depend_on_changes_the_hash():
    base = request_of(SETTINGS)
    others = [
        request_of(SETTINGS, **{name: value})
        for name, value in (("text", "b"), ("seed", 2), ("contents", {"model": "n"}))
    ]
    others += [request_of(replace(SETTINGS, **{name: value})) for name, value in (("steps", 3), ("shift", 1.0))]
    assert len({base.hash(), *(other.hash() for other in others)}) == 6
    assert base.hash() == request_of(SETTINGS, models="elsewhere").hash()


def test_a_causal_autoencoder_draws_from_pictures_and_clips(tmp_path):
    folder = make_folder(tmp_path)
    autoencoder = complete_autoencoder(AutoencoderSpec(preset="hunyuan-vae-tiny", scaling_factor=1.0))
    text, spec = TextEncoderSpec(context_dim=16, pooled_dim=8, max_tokens=8), TRANSFORMERS["mmdit-tiny"]
    transformer, coder = build_transformer(spec, autoencoder, text), build_autoencoder(autoencoder)
    initialize(transformer, 1)
    initialize(coder, 2)
    device = torch.device("cpu")
    store = ObjectStore.for_storage(config_of(folder).storage)
    sources = Sources(
        model=spec, model_weights="m", autoencoder=autoencoder, autoencoder_weights="a", text_encoder=text
    )
    models = Models(
        sources=sources,
        transformer=transformer.eval(),
        autoencoder=coder.eval(),
        text=load_text_encoder(text, store, tmp_path, device),
        device=device,
        dtype=torch.float32,
        offload=False,
    )
    picture = request_of(SETTINGS, condition="i2v_head", image=(folder / "picture.png").as_uri())
    assert latent_shape(picture, models) == (16, 3, 8, 8)
    assert SamplingPipeline(models, store).draw(picture).frames_THWC.shape == (9, 64, 64, 3)
    clip = request_of(replace(SETTINGS, frames=37), condition="v2v_head", video=(folder / "clip.mp4").as_uri())
    assert SamplingPipeline(models, store).draw(clip).frames_THWC.shape == (37, 64, 64, 3)
    short = request_of(replace(SETTINGS, frames=33), condition="v2v_head", video=(folder / "clip.mp4").as_uri())
    with pytest.raises(ConfigError, match="33 frames are not more than the 33 that are given"):
        SamplingPipeline(models, store).draw(short)


@pytest.mark.usefixtures("alone")
def test_the_sample_stage_keeps_the_best_candidate_and_offloads_without_a_change(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_folder(tmp_path)
    (folder / "run/train/weights").mkdir(parents=True)
    save_file(load_file(folder / "model.safetensors"), folder / "run/train/weights/model.safetensors")
    (folder / "scratch").mkdir()
    prompts = [Prompt(text="A cat.", seed=3, negative="blurry")]
    changes = {"prompts": prompts, "from_dataset": 0, "candidates": 2, "scorer": "motion"}
    config = config_of(folder, **changes)
    assert sample.run(context_of(folder, config)) == "completed"
    path = folder / "run/draw/videos/0001.mp4"
    settings = read_metadata(path)["videotrain"]["settings"]
    assert (settings["candidates"], settings["scorer"], settings["negative"]) == (2, "motion", "blurry")
    first = path.read_bytes()
    offloaded = config_of(folder, **changes, offload=True)
    path.unlink()
    assert sample.run(context_of(folder, offloaded)) == "completed"
    # Pixels may differ in the last digit of eight bits, and a codec spends a few bytes more or fewer on that.
    assert len(path.read_bytes()) == pytest.approx(len(first), rel=0.05)
    assert json.loads((folder / "run/draw/videos.json").read_text())["videos"][0]["settings"]["scorer"] == "motion"


@pytest.mark.parametrize(("offload", "moves"), [(True, ["meta", "cpu", "meta", "cpu"]), (False, [])])
def test_an_offloaded_model_leaves_the_device_after_its_phase_even_if_that_fails(offload, moves):
    seen = []

    class Recorder:
        def to(self, device):
            seen.append(device.type)

    parts = dict.fromkeys(("sources", "transformer", "autoencoder", "text"))
    models = Models(**parts, device=torch.device("meta"), dtype=torch.float32, offload=offload)
    with models.on_device(Recorder()):
        pass
    with pytest.raises(ZeroDivisionError), models.on_device(Recorder()):
        raise ZeroDivisionError
    assert seen == moves


def test_several_videos_in_one_call_are_those_of_one_call_each(model):
    noise = torch.cat([noise_for(model), 2 * noise_for(model)])
    one, other = text_of(model), text_of(model)
    names = ("context_BLD", "pooled_BP", "negative_context_BLD", "negative_pooled_BP")
    other = replace(other, **{name: getattr(other, name) + 1 for name in names[:2]})
    both = TextPair(**{name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names})
    given = Given(torch.randn(noise.shape[1], 1, 4, 6))
    for one_by_one in (False, True):
        sampler = Sampler(model, 3, Guidance(text=5.0, image=2.0), one_by_one=one_by_one)
        together = sampler.draw(noise, both, "i2v_head", given)
        for row, text in enumerate((one, other)):
            alone = sampler.draw(noise[row : row + 1], text, "i2v_head", given)
            # Another batch size adds in another order, and three guided steps carry that on; 5 measured.
            assert_near(together[row : row + 1], alone, roundings=32)
