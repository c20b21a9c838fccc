from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from videotrain_trainer.data.sample_reader import SampleReader
from videotrain_trainer.data.shards import DamagedSample, Member, ShardWriter
from videotrain_trainer.storage import ObjectStore


def read_member(store, uri, member):
    return SampleReader(store).tensors(uri, member)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latent": torch.randn(4, 2, 3, 5, generator=generator).bfloat16(),
        "context.plain": torch.randn(seed + 1, 6, generator=generator).bfloat16(),
    }


def write(path: Path, number: int) -> tuple[str, list[Member]]:
    with ShardWriter(path) as writer:
        for seed in range(number):
            writer.add(f"uid{seed}", tensors(seed))
    return writer.object_name("64px/8f/16:9", 3), writer.members


def test_members_come_back_exactly_and_any_tar_reads_the_shard(store: ObjectStore, storage, tmp_path):
    name, members = write(tmp_path / "shard.tar", 5)
    uri = f"{storage.uri}/{name}"
    store.put(uri, tmp_path / "shard.tar")
    for seed, member in enumerate(members):
        found = read_member(store, uri, member)
        assert {key: value.tolist() for key, value in found.items()} == {
            key: value.tolist() for key, value in tensors(seed).items()
        }
    with tarfile.open(tmp_path / "shard.tar") as tar:
        assert tar.getnames() == [f"uid{seed}.safetensors" for seed in range(5)]
        assert all(info.offset_data == member.offset for info, member in zip(tar, members, strict=True))


def test_equal_samples_give_a_shard_of_the_same_name_and_bytes(tmp_path):
    first, second = write(tmp_path / "a.tar", 3)[0], write(tmp_path / "b.tar", 3)[0]
    assert first == second
    assert first.startswith("64px-8f-16x9-00003-")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert write(tmp_path / "c.tar", 2)[0] != first


@pytest.mark.parametrize("where", [0, 70, -1])
def test_a_flipped_bit_anywhere_in_a_member_is_refused(store, storage, tmp_path, where):
    name, members = write(tmp_path / "shard.tar", 2)
    data = bytearray((tmp_path / "shard.tar").read_bytes())
    at = members[1].offset + (where if where >= 0 else members[1].length - 1)
    data[at] ^= 1
    uri = f"{storage.uri}/{name}"
    store.put(uri, bytes(data))
    assert read_member(store, uri, members[0])
    with pytest.raises(DamagedSample, match=r"sample uid1 at offset \d+ does not fit its checksum"):
        read_member(store, uri, members[1])


def test_a_cut_off_and_a_missing_shard_are_refused(store, storage, tmp_path):
    name, members = write(tmp_path / "shard.tar", 2)
    uri = f"{storage.uri}/{name}"
    with pytest.raises(DamagedSample, match="the shard of sample uid0 is missing"):
        read_member(store, uri, members[0])
    store.put(uri, (tmp_path / "shard.tar").read_bytes()[: members[1].offset + 10])
    with pytest.raises(DamagedSample, match="10 of"):
        read_member(store, uri, members[1])


def test_a_transfer_that_breaks_once_is_fetched_again(storage, tmp_path):
    class BrokenOnce(ObjectStore):
        asked = 0

        def get_range(self, uri: str, offset: int, length: int) -> bytes:
            BrokenOnce.asked += 1  # of the class: the second reading goes through a store with connections of its own
            data = super().get_range(uri, offset, length)
            return bytes(len(data)) if BrokenOnce.asked == 1 else data

    store = BrokenOnce(storage)
    name, members = write(tmp_path / "shard.tar", 1)
    store.put(f"{storage.uri}/{name}", tmp_path / "shard.tar")
    assert read_member(store, f"{storage.uri}/{name}", members[0])["latent"].shape == (4, 2, 3, 5)
    assert BrokenOnce.asked == 2
