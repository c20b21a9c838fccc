import pytest
import torch
from safetensors.torch import save

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.dc_ae import Conv
from videotrain_trainer.networks.build import (
    SCALING_FACTOR,
    build_autoencoder,
    initialize,
    load_autoencoder,
)
from videotrain_trainer.networks.weights import read_metadata

pytestmark = pytest.mark.numeric

SPEC = AUTOENCODERS["dc-ae-tiny"]


@pytest.fixture
def weights():
    """Weight files of one autoencoder, by metadata."""
    model = build_autoencoder(SPEC)
    initialize(model, 1)
    return lambda metadata=None: save(model.state_dict(), metadata)


def test_latents_are_divided_by_the_scale_stored_with_the_weights(weights):
    torch.manual_seed(0)
    clip = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    plain = load_autoencoder(SPEC, weights({SCALING_FACTOR: "1.0"}), "file")
    scaled = load_autoencoder(SPEC, weights({SCALING_FACTOR: "2.0"}), "file")
    with torch.no_grad():
        assert torch.equal(scaled.encode(clip) * 2, plain.encode(clip))
        assert torch.equal(scaled(clip), plain(clip))  # halved and doubled again: no power of two rounds


def test_a_scale_in_the_specification_wins_over_the_stored_one(weights):
    spec = SPEC.model_copy(update={"scaling_factor": 0.5})
    for metadata in ({SCALING_FACTOR: "2.0"}, None):
        assert load_autoencoder(spec, weights(metadata), "file").config.scaling_factor == 0.5


@pytest.mark.parametrize("stored", [None, "much", "0", "-1", "nan", "inf"])
def test_weights_without_a_usable_scale_name_the_field_to_set(weights, stored):
    metadata = None if stored is None else {SCALING_FACTOR: stored}
    with pytest.raises(ConfigError, match=r"spec\.autoencoder\.scalingFactor: not set, and s3://ae\.safetensors has"):
        load_autoencoder(SPEC, weights(metadata), "s3://ae.safetensors")


@pytest.mark.parametrize("data", [b"", b"no weights at all", b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_safetensors_file_is_refused_by_its_name(data):
    with pytest.raises(ConfigError, match="s3://some: not a safetensors file"):
        read_metadata(data, "s3://some")


def test_residual_branches_of_a_new_autoencoder_are_almost_silent():
    model = build_autoencoder(SPEC)
    initialize(model, 1)
    ends = [part.norm for part in model.modules() if isinstance(part, Conv) and part.norm is not None]
    assert ends and all(torch.all(norm.weight == 0.02) for norm in ends)
    assert torch.all(model.decoder.project_out.op_list[0].weight == 1.0)
