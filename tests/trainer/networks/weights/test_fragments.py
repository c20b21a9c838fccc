"""A rank reads the elements that it holds: they are those of the whole tensors, and cost about their own bytes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from videotrain_trainer.checksums import checksum, joined_checksum
from videotrain_trainer.errors import DamagedObject
from videotrain_trainer.networks import initial
from videotrain_trainer.networks.initial import initial_fragments, initial_value, write_initial
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Destination, open_weights, starting_fragments
from videotrain_trainer.networks.weights.fragments import whole
from videotrain_trainer.networks.weights.readers import LocalFile

CONFIG = MMDiTConfig(
    in_channels=16,
    context_dim=24,
    pooled_dim=12,
    hidden_size=64,
    num_heads=2,
    double_blocks=1,
    single_blocks=1,
    mlp_ratio=4.0,
    rope_axes=(8, 12, 12),
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
LAYOUTS = ("open-sora-v2", "flux-dev", "diffusers")


def model():
    with torch.device("meta"):
        return MMDiT(CONFIG)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in every layout that can hold them, float32, by layout."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        destination = Destination(target=folder / f"{layout}.safetensors", sealed=layout == "open-sora-v2")
        write_initial(model(), 3, destination, layout, torch.float32)
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Bytes of every ranged read."""
    lengths, read = [], LocalFile.read

    def counting(self, offset, length):
        lengths.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(LocalFile, "read", counting)
    return lengths


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_fragment_is_that_of_the_whole_parameter(files, layout, data):
    module = model()
    found = starting_fragments(module, open_weights(files / f"{layout}.safetensors"), initial_fragments(module, 9))
    name, parameter = data.draw(st.sampled_from(list(module.named_parameters())), label="parameter")
    start = data.draw(st.integers(0, parameter.numel() - 1))
    length = data.draw(st.integers(1, parameter.numel() - start))
    expected = initial_value(module, name, 3).view(-1)[start : start + length]
    assert torch.equal(found.read(name, start, length), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [2, 8])
def test_the_ranks_of_a_world_read_little_more_than_the_file_together(files, reads, layout, ranks):
    module, weights = model(), open_weights(files / f"{layout}.safetensors")
    found = starting_fragments(module, weights, initial_fragments(module, 9))
    reads.clear()
    for name, parameter in module.named_parameters():
        each = -(-parameter.numel() // ranks)
        for start in range(0, parameter.numel(), each):
            found.read(name, start, min(each, parameter.numel() - start))
    size = 4 * sum(parameter.numel() for parameter in module.parameters())
    # At the edges of a share: a head's rows, which lie apart in FLUX.1's order, and the input layer that is read whole.
    assert sum(reads) <= size * (1.0 if layout == "open-sora-v2" else 1.1 if ranks == 2 else 1.5)


def test_layers_that_keep_their_own_start_are_not_read(files):
    module = model()
    own = initial_fragments(module, 9)
    found = starting_fragments(module, open_weights(files / "flux-dev.safetensors"), own, ["img_in"])
    shape = tuple(module.img_in.weight.shape)
    assert torch.equal(whole(found, "img_in.weight", shape), initial_value(module, "img_in.weight", 9))
    assert torch.equal(whole(found, "txt_in.weight", (64, 24)), initial_value(module, "txt_in.weight", 3))


def test_a_part_of_a_sealed_tensor_is_verified_once_all_parts_are_known(files):
    module = model()
    found = starting_fragments(module, open_weights(files / "open-sora-v2.safetensors"), initial_fragments(module, 9))
    name, total = "txt_in.weight", 64 * 24
    for start, stop in ((0, 100), (100, 101), (101, total)):
        found.read(name, start, stop - start)
    parts = found.unverified()
    assert [(part.parameter, part.offset, part.length) for part in parts] == [
        (name, 0, 400),
        (name, 400, 4),
        (name, 404, 4 * (total - 101)),
    ]
    assert joined_checksum((part.crc32c, part.length) for part in parts) == found.checksum_of(name)
    assert found.unverified() == []


def test_a_whole_sealed_tensor_is_verified_at_once(files, tmp_path):
    data = bytearray((files / "open-sora-v2.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    module, weights = model(), open_weights(tmp_path / "damaged.safetensors")
    last = max(weights.files, key=lambda name: weights.files[name].infos[name].offset)
    found = starting_fragments(module, weights, initial_fragments(module, 9))
    with pytest.raises(DamagedObject, match=last):
        whole(found, last, weights.shapes[last])


@given(st.integers(0, 64 * 24 - 1), st.integers(1, 400))
@settings(max_examples=40)
def test_drawn_fragments_do_not_depend_on_what_else_is_drawn(start, length):
    module, name = model(), "txt_in.weight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "DRAWN", 100)
        length = min(length, 64 * 24 - start)
        part = initial_fragments(module, 5).read(name, start, length)
        assert torch.equal(part, initial_value(module, name, 5).view(-1)[start : start + length])


def test_a_tensor_of_one_block_is_drawn_as_a_whole_ever_was():
    values = initial_value(model(), "txt_in.weight", 5)
    bound = 24**-0.5
    random = initial.seeded_generator(5, "txt_in.weight")
    assert torch.equal(values, torch.empty(64, 24).uniform_(-bound, bound, generator=random))


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=6))
def test_checksums_of_parts_make_that_of_the_whole(data, cuts):
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[low:high] for low, high in pairwise(ends)]
    assert joined_checksum((checksum(part), len(part)) for part in parts) == checksum(data)
