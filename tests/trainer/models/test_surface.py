import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.model_fixtures import forward

from videotrain_api.config.presets import AUTOENCODERS, COMPANIONS, TRANSFORMERS
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.schema import ManifestError
from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE
from videotrain_trainer.networks.build import SCALING_FACTOR
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Destination, convert
from videotrain_trainer.text.byte_encoder import ByteTextEncoder

pytestmark = pytest.mark.numeric

TWINS = {
    "mmdit-11b": "mmdit-tiny",
    "mmdit-11b-dcae": "mmdit-tiny-dcae",
    "flux-dev": "flux-dev-tiny",
    "dc-ae-f32t4c128": "dc-ae-tiny",
    "dc-ae-f32t4c256": "dc-ae-tiny-c128",
    "hunyuan-vae": "hunyuan-vae-tiny",
}
HUNYUAN = AutoencoderSpec(preset="hunyuan-vae-tiny", scaling_factor=0.5)


def kinds(model):
    """Names of tensors, with numbers and depth taken out: the structure."""
    return {".".join("#" if part.isdigit() else part for part in name.split(".")) for name in model.state_dict()}


@pytest.mark.parametrize(("full", "tiny"), TWINS.items())
def test_every_preset_has_a_tiny_twin_of_the_same_structure(full, tiny):
    big, small = (models.build(name, device="meta") for name in (full, tiny))
    assert type(big) is type(small)
    assert kinds(big) == kinds(small)
    assert sum(p.numel() for p in small.parameters()) < 3e7 < sum(p.numel() for p in big.parameters())
    assert all(parameter.is_meta for parameter in big.parameters())


OWN_AUTOENCODERS = [name for name, spec in AUTOENCODERS.items() if spec.kind != "diffusers"]


def test_every_preset_can_be_built_and_every_transformer_knows_its_companions():
    assert set(models.PRESETS) == {*TWINS, *TWINS.values()} == {*TRANSFORMERS, *OWN_AUTOENCODERS}
    assert COMPANIONS.keys() == TRANSFORMERS.keys()
    for name in COMPANIONS:
        transformer, autoencoder = (models.build(part, device="meta") for part in (name, COMPANIONS[name][0]))
        patch = transformer.config.patch_size
        assert transformer.config.in_channels == autoencoder.config.latent_channels * patch**2


def test_build_takes_presets_specifications_sizes_and_published_fields(fixture):
    facts = fixture("mmdit_flux_image").facts["config"]
    published = models.build(facts, device="meta")
    assert published.config.fused_qkv
    assert models.build(published.config, device="meta").config == published.config
    own = models.build(
        TransformerSpec(preset="mmdit-tiny", single_blocks=5),
        autoencoder="dc-ae-tiny",
        text_encoder=TextEncoderSpec(context_dim=24, pooled_dim=8),
        device="meta",
    )
    assert (own.config.single_blocks, own.config.in_channels, own.config.context_dim) == (5, 64 * 4, 24)
    assert isinstance(models.build(AutoencoderSpec(preset="dc-ae-tiny"), device="meta"), DCAE)


def test_build_gives_the_same_weights_for_the_same_seed_in_the_type_that_was_asked_for():
    first, same, other = (models.build("mmdit-tiny", seed=seed, dtype=torch.bfloat16) for seed in (1, 1, 2))
    assert {value.dtype for value in first.state_dict().values()} == {torch.bfloat16}
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.img_in.weight, other.img_in.weight)
    assert not first.training


def test_what_build_does_not_know_is_refused_with_what_is_allowed():
    with pytest.raises(
        ConfigError, match=r"preset 'mmdit-12b' is unknown; did you mean 'mmdit-11b'\? allowed: mmdit-11b"
    ):
        models.build("mmdit-12b")
    with pytest.raises(ManifestError, match="unknown preset"):
        models.build(TransformerSpec(preset="mmdit-12b"), autoencoder="dc-ae-tiny", text_encoder=TextEncoderSpec())
    with pytest.raises(ConfigError, match="a transformer without a preset needs to know its latents"):
        models.build(TransformerSpec(hidden_size=64))
    with pytest.raises(ConfigError, match="unknown fields"):
        models.build({"depth": 3, "layers": 2})


@pytest.mark.parametrize("name", ["mmdit_t2v", "mmdit_i2v", "mmdit_dc_ae", "mmdit_flux_image"])
@torch.no_grad()
def test_load_recognises_layout_and_sizes_and_computes_the_fixture(name, fixture):
    found = fixture(name)
    described = models.load(found.weights, dtype=torch.float32)
    config = models.config_of(found.facts["config"])
    assert described.config.num_heads == config.num_heads
    model = models.load(found.weights, model=config, dtype=torch.float32)
    found.check("out", forward(model, found))


def test_load_keeps_the_stored_type_and_can_cast(fixture):
    path = fixture("mmdit_t2v").weights
    assert models.load(path).img_in.weight.dtype == torch.bfloat16
    assert models.load(path, dtype=torch.float16).img_in.weight.dtype == torch.float16
    with pytest.raises(ConfigError, match="said to have layout 'flux-dev'"):
        models.load(path, "flux-dev")
    with pytest.raises(ConfigError, match=r"missing: cond_in\.weight"):
        models.load(path, model=models.config_of(fixture("mmdit_i2v").facts["config"]))


def test_an_autoencoder_takes_the_scale_of_its_preset_else_of_its_file(tmp_path):
    model = models.build("dc-ae-tiny")
    path = tmp_path / "a.safetensors"
    save_file(model.state_dict(), path)
    with pytest.raises(ConfigError, match=r"not set, and .* has scaling_factor None in its metadata"):
        models.load(path)
    save_file(model.state_dict(), path, metadata={SCALING_FACTOR: "2.5"})
    for loaded in (models.load(path), models.load(path, model="dc-ae-tiny")):
        assert loaded.config.scaling_factor == 2.5
    spec = AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=0.25)
    assert models.load(path, model=spec).config.scaling_factor == 0.25


def test_clips_are_coded_one_by_one_and_scaled():
    model = models.build(AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=2.0))
    torch.manual_seed(0)
    clips = torch.rand(2, 3, 8, 32, 32) * 2 - 1
    latents = models.encode(model, clips)
    assert latents.shape == (2, 64, 2, 1, 1)
    assert torch.equal(latents[1:], models.encode(model, clips[1:]))
    plain = models.build(AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=1.0))
    assert torch.equal(latents * 2.0, models.encode(plain, clips))  # a division by two does not round
    assert models.decode(model, latents).shape == clips.shape
    with pytest.raises(ValueError, match="gives one latent for a clip"):
        models.encode(model, clips, generator=torch.Generator())


def test_a_hunyuan_vae_gives_its_mode_or_a_sample():
    model = models.build(HUNYUAN)
    torch.manual_seed(0)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    mode = models.encode(model, clip)
    drawn = [models.encode(model, clip, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert mode.shape == (1, 16, 2, 2, 2)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], mode)
    assert models.decode(model, mode).shape == clip.shape


class TestSample:
    @pytest.fixture
    def parts(self):
        transformer = models.build("mmdit-tiny-dcae")
        torch.nn.init.normal_(transformer.cond_in.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        autoencoder = models.build(AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=1.0))
        return transformer, autoencoder, ByteTextEncoder(64, 32, 64)

    def test_a_video_has_the_size_that_was_asked_for_and_depends_on_seed_and_prompt(self, parts):
        steps = []

        def draw(prompt="A rabbit.", **options):
            size = {"height": 32, "width": 64, "frames": 8, "steps": 2}
            on_step = options.pop("on_step", None)
            return models.sample(*parts, prompt, models.SampleOptions(**(size | options)), on_step=on_step)

        first = draw(on_step=lambda *at: steps.append(at))
        assert first.shape == (8, 32, 64, 3)
        assert first.dtype == torch.uint8
        assert steps == [(1, 2), (2, 2)]
        assert torch.equal(first, draw())
        assert not torch.equal(first, draw(seed=1))
        assert not torch.equal(first, draw("A street."))
        assert not torch.equal(first, draw(guidance=models.Guidance(text=1.0, image=1.0)))
        assert torch.equal(first, draw(guidance=7.5))
        assert not torch.equal(first, draw(guidance=2))

    def test_several_prompts_are_drawn_in_one_batch_as_if_each_were_drawn_alone(self, parts):
        options, calls = models.SampleOptions(height=32, width=32, frames=8, steps=2), []
        prompts = ["A rabbit.", "A street at night.", "A dog. 12 FPS."]
        hook = parts[0].register_forward_pre_hook(
            lambda _m, _a, inputs: calls.append(len(inputs["img_BNI"])), with_kwargs=True
        )
        together = models.sample(*parts, prompts, options)
        hook.remove()
        assert together.shape == (3, 8, 32, 32, 3)
        assert calls == [6, 6]  # two branches of three videos in each step
        for video, prompt in zip(together, prompts, strict=True):
            alone = models.sample(*parts, prompt, options)
            assert (video.int() - alone.int()).abs().max() <= 1
        assert models.sample(*parts, prompts[:1], options).shape == (1, 8, 32, 32, 3)
        with pytest.raises(ValueError, match="prompt: an empty list"):
            models.sample(*parts, [], options)

    def test_a_picture_is_told_no_rate_and_no_motion(self, parts):
        seen = []

        class Noting:
            def encode(self, texts):
                seen.append(list(texts))
                return parts[2].encode(texts)

        for frames in (1, 8):
            options = models.SampleOptions(height=32, width=32, frames=frames, steps=1)
            models.sample(*parts[:2], Noting(), "A tree.", options)
        assert seen == [["A tree.", ""], ["A tree. 24 FPS, 4 motion score.", ""]]

    def test_a_distilled_model_has_its_own_usual_guidance_and_no_negative_prompt(self, parts):
        transformer = models.build(
            TransformerSpec(preset="mmdit-tiny-dcae", cond_embed=False, guidance_embed=True),
            autoencoder="dc-ae-tiny",
            text_encoder=COMPANIONS["mmdit-tiny-dcae"][1],
        )
        size, seen = {"height": 32, "width": 32, "frames": 8, "steps": 1}, []
        transformer.register_forward_pre_hook(
            lambda _m, _a, inputs: seen.append(inputs["guidance_B"].tolist()), with_kwargs=True
        )
        for guidance in (None, 2.5, models.Guidance(text=6.0, image=1.0)):
            models.sample(transformer, *parts[1:], "A cat.", models.SampleOptions(**size, guidance=guidance))
        assert seen == [[4.0], [2.5], [6.0]]
        options = models.SampleOptions(**size, negative_prompt="blurry")
        with pytest.raises(ValueError, match="negative_prompt: 'blurry': the model is distilled"):
            models.sample(transformer, *parts[1:], "A cat.", options)

    @torch.no_grad()
    def test_a_given_first_frame_is_the_one_in_the_latent(self, parts, monkeypatch):
        from videotrain_trainer.models import drawing

        seen = []
        plain = drawing.decode
        monkeypatch.setattr(drawing, "decode", lambda model, latent: seen.append(latent) or plain(model, latent))
        picture = torch.rand(3, 1, 32, 32) * 2 - 1
        options = models.SampleOptions(height=32, width=32, frames=8, steps=2, condition="i2v_head")
        models.sample(*parts, "A rabbit.", options, reference_CFHW=picture)
        assert torch.equal(seen[0][:, :, :1], models.encode(parts[1], picture[None]))

    def test_what_does_not_fit_is_refused(self, parts):
        size = {"height": 32, "width": 32, "frames": 8, "steps": 1}
        picture = torch.zeros(3, 1, 32, 32)
        for options, message in (
            ({"height": 40}, "40 x 32 pixels: both must be multiples of 32"),
            ({"frames": 9}, "9 frames: this autoencoder decodes to 1 or 4k with k > 1 frames"),
            ({"condition": "i2v_head"}, "condition 'i2v_head' and the image is not given: the i2v kinds need an image"),
            (
                {"reference_CFHW": picture},
                "condition 't2v' and the image is given: the i2v kinds need an image",
            ),
            ({"condition": "i2v_tail", "reference_CFHW": picture[:, :, :16]}, r"it must be \[3, 1, 32, 32\]"),
        ):
            reference = options.pop("reference_CFHW", None)
            chosen = models.SampleOptions(**(size | options))
            with pytest.raises(ValueError, match=message):
                models.sample(*parts, "A rabbit.", chosen, reference_CFHW=reference)
        with pytest.raises(ValueError, match="condition 'i2v_mid' is unknown; allowed: t2v"):
            models.SampleOptions(**size, condition="i2v_mid")
        other = models.build("mmdit-tiny", device="meta")
        with pytest.raises(ValueError, match="it was made for another autoencoder"):
            models.sample(other, *parts[1:], "A rabbit.", models.SampleOptions(**size))


class TestDiffusersFolder:
    @pytest.fixture
    def pair(self, fixture, mmdit):
        spec = HUNYUAN.model_copy(update={"latent_channels": 4})
        return mmdit("mmdit_i2v"), models.build(spec)

    def test_a_folder_comes_back_with_every_value(self, pair, tmp_path):
        models.export_diffusers(tmp_path, *pair, shard_bytes=400_000)
        back = models.import_diffusers(tmp_path)
        for model, other in zip(pair, (back.transformer, back.autoencoder), strict=True):
            assert model.config == other.config
            assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
        assert (tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").exists()

    def test_its_configurations_are_those_of_diffusers_classes(self, pair, tmp_path):
        models.export_diffusers(tmp_path, *pair)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
        assert index["vae"] == ["diffusers", "AutoencoderKLHunyuanVideo"]
        config = json.loads((tmp_path / "transformer/config.json").read_text())
        # 16 packed latent features; the condition's 4 + 16 come in by the same layer.
        assert (config["in_channels"], config["out_channels"], config["patch_size"]) == (36, 16, 1)
        state = load_file(tmp_path / "transformer/diffusion_pytorch_model.safetensors")
        assert state["x_embedder.weight"].shape[1] == 36
        scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
        assert scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"

    def test_it_is_written_from_files_tensor_by_tensor_too(self, pair, fixture, tmp_path):
        save_file(pair[1].state_dict(), tmp_path / "vae.safetensors", metadata={SCALING_FACTOR: "0.5"})
        models.export_diffusers(tmp_path / "out", fixture("mmdit_i2v").weights, tmp_path / "vae.safetensors")
        back = models.import_diffusers(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(back.transformer.cond_in.bias, pair[0].cond_in.bias)
        assert back.autoencoder.config.scaling_factor == 0.5

    def test_a_dc_ae_keeps_our_configuration(self, tmp_path):
        transformer, autoencoder = models.build("mmdit-tiny-dcae"), models.build("dc-ae-tiny")
        models.export_diffusers(tmp_path, transformer, autoencoder)
        back = models.import_diffusers(tmp_path)
        assert back.autoencoder.config == autoencoder.config
        assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["videotrain_trainer", "VideoDCAE"]

    def test_what_diffusers_cannot_hold_is_refused(self, pair, tmp_path):
        models.export_diffusers(tmp_path, *pair)
        with pytest.raises(ConfigError, match=r"there is a model_index\.json already"):
            models.export_diffusers(tmp_path, *pair)
        uneven = models.build(AutoencoderSpec(preset="hunyuan-vae-tiny", depths=[1, 2, 1, 1], scaling_factor=1.0))
        with pytest.raises(ConfigError, match="one depth n in all encoder levels and n \\+ 1"):
            models.export_diffusers(tmp_path / "b", pair[0], uneven)
        with pytest.raises(ConfigError, match="a transformer and an autoencoder are needed, in this order"):
            models.export_diffusers(tmp_path / "c", pair[1], pair[0])
        path = tmp_path / "transformer/config.json"
        path.write_text(path.read_text().replace("FluxTransformer2DModel", "SD3Transformer2DModel"))
        with pytest.raises(ConfigError, match="_class_name is 'SD3Transformer2DModel'; only FluxTransformer2DModel"):
            models.import_diffusers(tmp_path)


def test_a_component_of_a_diffusers_folder_is_a_source_like_any_other(fixture, mmdit, tmp_path):
    spec = HUNYUAN.model_copy(update={"latent_channels": 4})
    models.export_diffusers(tmp_path, mmdit("mmdit_i2v"), models.build(spec))
    found = fixture("mmdit_i2v")
    convert(tmp_path / "transformer", Destination(target=tmp_path / "w.safetensors"), "diffusers", "open-sora-v2")
    first, back = load_file(found.weights), load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(value.float(), back[name]) for name, value in first.items())
    assert isinstance(models.load(tmp_path / "transformer"), MMDiT)
    assert isinstance(models.load(tmp_path / "vae", model=spec), HunyuanVAE)


@pytest.mark.parametrize("preset", sorted(models.PRESETS))
def test_no_part_of_a_model_hides_behind_a_method(preset):
    """A module that is assigned to a method's name is stored and never called: so a compiled encoder was lost."""
    model = models.build(preset, device="meta")
    hidden = [
        f"{type(module).__name__}.{name}"
        for module in model.modules()
        for name in module._modules
        if hasattr(type(module), name)
    ]
    assert not hidden
