"""Objects that every process of a pod reads: fetched once, verified, passed over if damaged."""

from __future__ import annotations

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from videotrain_trainer import node_cache
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.networks.weights import open_weights, weights_bytes
from videotrain_trainer.node_cache import BLOCK, NodeCache

DATA = bytes(range(256)) * (3 * BLOCK // 256) + b"rest"


@pytest.fixture
def uri(store, storage):
    store.put(f"{storage.uri}/big.safetensors", DATA)
    return f"{storage.uri}/big.safetensors"


@pytest.fixture
def counted(store, monkeypatch):
    """Bytes of every ranged read of the store."""
    lengths, read = [], type(store).get_range

    def counting(self, uri, offset, length):
        lengths.append(length)
        return read(self, uri, offset, length)

    monkeypatch.setattr(type(store), "get_range", counting)
    return lengths


def test_processes_that_come_at_once_fetch_an_object_once_between_them(tmp_path, store, uri, counted):
    caches = [NodeCache(tmp_path, store.reconnected()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda cache: cache.file(uri), caches))
    assert sum(counted) == len(DATA)
    for file in files:
        assert file.size == len(DATA)
        for offset, length in ((0, 10), (BLOCK - 5, 10), (3 * BLOCK - 1, 100), (7, 2 * BLOCK), (0, 0)):
            assert file.read(offset, length) == DATA[offset : offset + length]
    assert sum(counted) == len(DATA)


def test_an_object_that_was_replaced_is_fetched_anew(tmp_path, store, uri):
    cache = NodeCache(tmp_path, store)
    assert cache.file(uri).read(0, 4) == DATA[:4]
    store.put(uri, b"new content")
    assert cache.file(uri).read(0, 20) == b"new content"


def test_what_a_dead_process_left_half_done_is_done_again(tmp_path, store, uri):
    cache = NodeCache(tmp_path, store)
    path = cache.file(uri).path
    path.with_suffix(".crc").unlink()
    assert cache.file(uri).read(5, 5) == DATA[5:10]


def test_a_damaged_block_is_read_from_the_object(tmp_path, store, uri, counted):
    from videotrain_trainer.checksums import read_again
    from videotrain_trainer.errors import DamagedObject

    file = NodeCache(tmp_path, store).file(uri)
    data = bytearray(file.path.read_bytes())
    data[BLOCK + 3] ^= 1
    file.path.write_bytes(bytes(data))
    assert file.read(0, 10) == DATA[:10]  # its own block is whole
    with pytest.raises(DamagedObject, match="block 1"):
        file.read(BLOCK, 10)
    counted.clear()
    assert read_again(file, lambda source: source.read(BLOCK, 10), (DamagedObject,)) == DATA[BLOCK : BLOCK + 10]
    assert counted == [10]


def test_without_room_what_was_not_used_goes_and_then_the_object_itself_is_read(
    tmp_path, store, storage, uri, monkeypatch
):
    cache = NodeCache(tmp_path, store)
    other = f"{storage.uri}/other.safetensors"
    store.put(other, b"x" * 1000)
    old = cache.file(other).path
    usage, free = namedtuple("usage", "total used free"), [0]

    def disk_usage(_):
        # The file that was not used frees as much as is missing.
        return usage(0, 0, node_cache.KEPT_FREE + len(DATA) if not old.exists() else free[0])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert cache.file(uri).read(0, 3) == DATA[:3]
    assert not old.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    assert cache.file(other) is None


def test_weights_are_read_from_the_cache_and_from_the_store_where_that_is_damaged(tmp_path, store, storage, counted):
    tensors = {"a": torch.arange(300_000, dtype=torch.float32), "b": torch.ones(7)}
    uri = f"{storage.uri}/weights/model.safetensors"
    store.put(uri, weights_bytes(tensors))
    size = store.stat(uri).size
    for _ in range(2):
        weights = open_weights(storage.uri, store=store, cache=NodeCache(tmp_path, store))
        assert all(torch.equal(weights.read(name), value) for name, value in tensors.items())
    assert sum(counted) == size
    (path,) = (path for path in (tmp_path / node_cache.FOLDER).iterdir() if not path.suffix)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
    weights = open_weights(storage.uri, store=store, cache=NodeCache(tmp_path, store))
    assert all(torch.equal(weights.read(name), value) for name, value in tensors.items())
    assert sum(counted) > size


def test_a_missing_object_is_told(tmp_path, store, storage):
    with pytest.raises(ObjectMissing):
        NodeCache(tmp_path, store).file(f"{storage.uri}/none.safetensors")
