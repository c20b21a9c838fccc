from pathlib import Path

import pytest
import yaml

from videotrain_api.config.presets import AUTOENCODERS, complete_autoencoder
from videotrain_api.cost.autoencoder_flops import decoder_cost
from videotrain_api.resource.architecture import AutoencoderCompression, AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import KINDS, OF_SOME_KINDS, TimeAxis
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run


@pytest.mark.parametrize(
    ("time", "encoded", "drawn"),
    [
        (TimeAxis(4, "causal"), [1, 5, 9, 13, 17], [1, 5, 9, 13, 17]),
        (TimeAxis(4, "none"), [1, 4, 8, 12, 16], [1, 8, 12, 16]),
        (TimeAxis(8, "causal"), [1, 9, 17], [1, 9, 17]),
        (TimeAxis(6, "causal"), [1, 7, 13], [1, 7, 13]),
        (TimeAxis(8, "chunk"), [1, 8, 16], [1, 16]),
    ],
)
def test_causality_and_compression_say_which_lengths_are_allowed(time, encoded, drawn):
    assert [frames for frames in range(1, 18) if time.fits(frames)] == encoded
    assert [frames for frames in range(1, 18) if time.draws(frames)] == drawn
    for frames in encoded[1:]:
        latents = time.latent_frames(frames)
        assert time.frames(latents) == frames
        assert time.nearest(frames + 1)[0] == frames


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_preset_has_the_fields_of_its_kind_and_no_others(name):
    spec = complete_autoencoder(AutoencoderSpec(preset=name))
    kind = KINDS[spec.kind]
    assert {field for field in OF_SOME_KINDS if getattr(spec, field) is not None} <= kind.needs | kind.takes
    assert decoder_cost(spec, spec.time.frames(3), 256, 256).flops > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_needs_is_asked_for(kind):
    with pytest.raises(ManifestError) as error:
        complete_autoencoder(AutoencoderSpec(kind=kind, latent_channels=4))
    missing = {problem.path for problem in error.value.problems}
    wire = AutoencoderSpec.model_fields
    assert missing == {f"spec.autoencoder.{wire[name].alias or name}" for name in KINDS[kind].needs}


def test_an_autoencoder_of_diffusers_has_the_compression_that_it_says():
    spec = AutoencoderSpec(
        kind="diffusers", latent_channels=4, compression=AutoencoderCompression(time=8, space=32), causality="chunk"
    )
    assert (spec.temporal_compression, spec.spatial_compression, spec.causal) == (8, 32, False)
    assert complete_autoencoder(spec) == spec


@pytest.mark.parametrize(("preset", "frames"), [("wan-vae", 5), ("ltx-vae", 9), ("mochi-vae", 7)])
def test_lengths_that_fit_the_autoencoder_are_accepted_by_models_and_crd(admission, preset, frames):
    manifest = yaml.safe_load((Path(__file__).parent / "bad/91-frames-of-another-compression.yaml").read_text())
    spec = manifest["spec"]
    spec["autoencoder"]["preset"], spec["model"]["patchSize"] = preset, 1
    spec["stages"][2]["train"]["buckets"][0] |= {"frames": frames, "resolution": "256px"}
    spec["stages"][3]["sample"] |= {"frames": frames, "resolution": "256px"}
    assert parse_run(manifest).spec.autoencoder.preset == preset
    assert admission.refusals(manifest) == []
