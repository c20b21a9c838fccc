import pytest
import torch

from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.weights import load_weights

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def found(fixture):
    return fixture("dc_ae")


@pytest.fixture(scope="module")
def build(found):
    def model(scaling_factor=1.0):
        facts = found.facts["config"]
        config = DCAEConfig(
            latent_channels=facts["latent_channels"],
            widths=tuple(facts["width_list"]),
            depths=tuple(facts["encoder_depth_list"]),
            decoder_depths=tuple(facts["decoder_depth_list"]),
            scaling_factor=scaling_factor,
        )
        module = DCAE(config)
        load_weights(module, found.weights, "dc_ae")
        return module.requires_grad_(False)

    return model


def test_encoding_a_clip_gives_the_published_latent_and_intermediate_values(found, build):
    model, seen = build(), {}
    for index, stage in enumerate(model.encoder.stages):
        stage.register_forward_hook(lambda _m, _a, out, i=index: seen.update({f"mid.enc_stage{i}": out}))
    third = model.encoder.stages[3].op_list
    third[0].context_module.register_forward_hook(lambda _m, _a, out: seen.update({"mid.enc_stage3_context": out}))
    third[-1].main.register_forward_hook(lambda _m, _a, out: seen.update({"mid.enc_stage3_down_main": out}))
    found.check("video.z", model.encode(found["video.in"]))
    for name in ("enc_stage2", "enc_stage3_context", "enc_stage3_down_main", "enc_stage3", "enc_stage4", "enc_stage5"):
        found.check(f"mid.{name}", seen[f"mid.{name}"])


def test_decoding_a_latent_gives_the_published_pixels_and_intermediate_values(found, build):
    model, seen = build(), {}
    model.decoder.project_in.register_forward_hook(lambda _m, _a, out: seen.update({"mid.dec_project_in": out}))
    model.decoder.stages[5].register_forward_hook(lambda _m, _a, out: seen.update({"mid.dec_stage5": out}))
    model.decoder.stages[4].register_forward_hook(lambda _m, _a, out: seen.update({"mid.dec_stage4": out}))
    found.check("latent.decoded", model.decode(found["latent.in"]))
    for name, value in seen.items():
        found.check(name, value)


def test_pictures_pass_through_the_same_net_as_clips_of_one_frame(found, build):
    model = build()
    found.check("image.z", model.encode(found["image.in"]))
    found.check("image_latent.decoded", model.decode(found["image_latent.in"]))


def test_four_frames_become_one_latent_frame_which_decodes_to_one_frame(found, build):
    model = build()
    found.check("t4.z", model.encode(found["t4.in"]))
    found.check("t4.decoded", model.decode(found["t4.z"]))


def test_the_scaling_factor_divides_latents_and_multiplies_them_back(found, build):
    model = build(scaling_factor=0.493)
    found.check("image.z_scaled", model.encode(found["image.in"][:1]))
    found.check("image_latent.decoded_scaled", model.decode(found["image_latent.in"]))


@pytest.mark.parametrize("shape", [(1, 3, 3, 64, 64), (1, 3, 6, 64, 64), (1, 3, 8, 48, 64), (1, 3, 1, 64, 65)])
def test_clips_that_the_net_cannot_halve_evenly_are_refused(build, shape):
    with pytest.raises(ValueError, match="cannot be encoded"):
        build().encode(torch.zeros(shape))
