import pytest
import torch
from safetensors.torch import save_file
from support.perceptual_weights import SMALL, small_lpips, write_lpips

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.losses.lpips_files import load_perceptual
from videotrain_trainer.networks.losses.perceptual import (
    SCALE,
    SHIFT,
    VGG16_WIDTHS,
    PerceptualDistance,
    frames_of,
    published_names,
)
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.numeric

FIELD = "autoencoder.perceptual.weights"


@pytest.fixture
def store():
    return ObjectStore.for_storage(Storage(uri="s3://unused-bucket"))


def picture(red, green):
    """A flat picture whose scaled pixels have these values."""
    values = [red, green, 0.0]
    pixels = [value * scale + shift for value, scale, shift in zip(values, SCALE, SHIFT, strict=True)]
    return torch.tensor(pixels).view(1, 3, 1, 1).expand(1, 3, 16, 16)


def passing_red_and_green():
    """A network that hands red and green through all its convolutions and weighs them 1 and 2."""
    module = PerceptualDistance((2, 2, 2, 2, 2))
    for name, parameter in module.named_parameters():
        parameter.data.zero_()
        if name.startswith("lin"):
            parameter.data[0, :, 0, 0] = torch.tensor([1.0, 2.0])
        elif name.endswith("weight"):
            parameter.data[0, 0, 1, 1] = parameter.data[1, 1, 1, 1] = 1.0
    return module


def test_the_distance_is_the_one_computed_by_hand():
    # (3, 4) and (4, 3) have the directions (0.6, 0.8) and (0.8, 0.6): 1 * 0.04 + 2 * 0.04 in each of five blocks.
    distance = passing_red_and_green()(picture(3.0, 4.0), picture(4.0, 3.0))
    # Pixels of 3 and 4 are scaled and scaled back, then brought to length one; 1e-10 is added to that length.
    assert distance.item() == pytest.approx(5 * 0.12, rel=64 * torch.finfo().eps)


def test_equal_pictures_have_no_distance_and_only_differences_of_direction_count():
    module = passing_red_and_green()
    assert module(picture(3.0, 4.0), picture(3.0, 4.0)).item() == 0.0
    # Directions of length one differ by a few roundings; the distance is a sum of five times three of their squares.
    assert module(picture(3.0, 4.0), picture(6.0, 8.0)).item() <= 15 * (8 * torch.finfo().eps) ** 2


def test_a_picture_without_any_feature_has_a_finite_gradient():
    pixels = picture(-1.0, -1.0).clone().requires_grad_()
    passing_red_and_green()(picture(3.0, 4.0), pixels).sum().backward()
    assert torch.isfinite(pixels.grad).all()


def test_the_tensors_are_those_of_the_published_files():
    with torch.device("meta"):
        state = PerceptualDistance(VGG16_WIDTHS).state_dict()
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    expected = {f"features.{number}.{kind}" for number in convolutions for kind in ("weight", "bias")}
    assert set(state) == expected | {f"lin{block}.model.1.weight" for block in range(5)}
    assert state["features.28.weight"].shape == (512, 512, 3, 3)
    assert state["lin2.model.1.weight"].shape == (1, 256, 1, 1)
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("f")) == 14_714_688


def test_its_weights_are_frozen_and_pictures_get_gradients_in_float32():
    module = small_lpips()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    first, second = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    second = second.bfloat16().requires_grad_()
    distance = module(first, second)
    assert (distance.shape, distance.dtype) == ((2,), torch.float32)
    distance.sum().backward()
    assert second.grad.abs().sum() > 0


def test_frames_become_pictures_in_order():
    video = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4, 1, 1)
    assert torch.equal(frames_of(video)[:4, :, 0, 0], video[0, :, :, 0, 0].T)


def test_published_files_are_read_in_all_their_layouts(tmp_path, store):
    expected = small_lpips().state_dict()
    found = load_perceptual(store, write_lpips(tmp_path / "apart"), FIELD).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    packaged = {}
    for name, tensor in expected.items():
        whole = name.replace("features.", "net.slice1.").replace("lin", "lins.", 1) if name[0] in "fl" else name
        packaged[whole] = tensor.contiguous()
    assert any(name.startswith("lins.") for name in packaged)
    (tmp_path / "whole").mkdir()
    save_file(packaged, tmp_path / "whole/lpips.safetensors")
    found = load_perceptual(store, (tmp_path / "whole").as_uri(), FIELD)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.items())
    assert found.features[0].out_channels == SMALL[0]


def test_a_classifier_is_left_out():
    assert published_names({"classifier.0.weight": torch.zeros(1), "lin0.model.1.weight": torch.zeros(1)}).keys() == {
        "lin0.model.1.weight"
    }


def test_an_empty_folder_says_what_belongs_there(tmp_path, store):
    with pytest.raises(ConfigError, match=r"autoencoder.perceptual.weights: no .safetensors.*vgg16-397923af.pth"):
        load_perceptual(store, tmp_path.as_uri(), FIELD)


def test_a_missing_and_a_misshapen_tensor_are_named(tmp_path, store):
    uri = write_lpips(tmp_path)
    state = torch.load(tmp_path / "vgg16-397923af.pth")
    del state["features.5.bias"]
    state["features.0.weight"] = state["features.0.weight"][:, :2]
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    with pytest.raises(ConfigError, match=r"features.0.weight \[4, 3, 3, 3\] is \[4, 2, 3, 3\] there.*features.5.bias"):
        load_perceptual(store, uri, FIELD)


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, store, name):
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match=rf"{name} is no readable weight file"):
        load_perceptual(store, tmp_path.as_uri(), FIELD)
