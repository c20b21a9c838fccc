"""Weights with checksums are read as they were written, or refused: whatever bit of them flips."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.errors import ConfigError, DamagedObject, ObjectMissing
from videotrain_trainer.networks.weights import Destination, open_weights, planned_order, weights_bytes, write_weights
from videotrain_trainer.networks.weights.seal import SEAL
from videotrain_trainer.storage import ObjectStore

TENSORS = {
    "odd": torch.arange(5, dtype=torch.bfloat16),
    "wide": torch.linspace(-1, 1, 12).view(3, 4),
    "none": torch.empty(0, 3),
    "one": torch.tensor(7, dtype=torch.int64),
    "other": torch.linspace(0, 9, 12).view(3, 4),
}
FIELDS = {"run": "default/test", "scaling_factor": "0.5"}


def values(source, **options):
    weights = open_weights(source, **options)
    return {name: weights.read(name) for name in weights.files}, dict(weights.metadata)


def same(found) -> bool:
    tensors, metadata = found
    alike = {name: t.dtype == TENSORS[name].dtype and torch.equal(t, TENSORS[name]) for name, t in tensors.items()}
    return metadata == FIELDS and set(tensors) == set(TENSORS) and all(alike.values())


def test_no_single_bit_gives_another_value():
    data = weights_bytes(TENSORS, FIELDS)
    assert same(values(data))
    refused = 0
    for bit in range(8 * len(data)):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        try:
            found = values(bytes(harmed), what="file")
        except (ConfigError, DamagedObject):
            refused += 1
        else:
            # A bit of the field's own name makes a file without checksums, whose values are as they were written.
            tensors, metadata = found
            assert same((tensors, {name: metadata.get(name) for name in FIELDS})), f"bit {bit}"
    assert refused > 0.9 * 8 * len(data)


@pytest.fixture
def stored(store, storage):
    uri = f"{storage.uri}/weights/model.safetensors"
    write_weights(
        Destination(target=uri, store=store, sealed=True), planned_order(TENSORS), TENSORS.__getitem__, FIELDS
    )
    return uri


@pytest.mark.parametrize("part", ["header", "tensors"])
def test_what_one_connection_misreads_is_read_through_another(store, stored, monkeypatch, part):
    whole, begin, spoilt = ObjectStore.get_range, len(open_weights(stored, store=store).files["wide"].header), []

    def misread(self, uri, offset, length):
        data = whole(self, uri, offset, length)
        if self is not store or (part == "header") != (offset < begin):
            return data
        spoilt.append(offset)
        return data[:-1] + bytes([data[-1] ^ 1])

    monkeypatch.setattr(ObjectStore, "get_range", misread)
    assert same(values(stored, store=store))
    # After its header the whole file comes through the other connection.
    assert len(spoilt) == (1 if part == "header" else 4)


def test_a_file_that_is_missing_once_is_asked_for_again(store, stored, monkeypatch):
    whole, seen = ObjectStore.get_range, set()

    def missing(self, uri, offset, length):
        if (offset, length) not in seen:
            seen.add((offset, length))
            raise ObjectMissing(uri)
        return whole(self, uri, offset, length)

    monkeypatch.setattr(ObjectStore, "get_range", missing)
    assert same(values(stored, store=store))


def test_lasting_damage_names_the_object_and_its_tensor_and_replaces_the_machine(store, stored):
    data = bytearray(store.get(stored))
    data[-1] ^= 64
    store.put(stored, bytes(data))
    with pytest.raises(DamagedObject, match=rf"^{stored}: damaged, as 3 readings say: odd does not fit") as failed:
        values(stored, store=store)
    assert failed.value.exit_code == ExitCode.CHECKPOINT


def test_other_programs_read_what_is_sealed_and_may_copy_it(tmp_path, stored, store):
    path = tmp_path / "model.safetensors"
    path.write_bytes(store.get(stored))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(path).items())
    save_file(load_file(path), path, metadata=metadata)
    assert same(values(path)), "their header has another order"
    changed = load_file(path)
    changed["wide"] += 1
    save_file(changed, path, metadata=metadata)
    with pytest.raises(DamagedObject, match=rf"changed on purpose has to lose the field {SEAL}"):
        values(path)
    save_file(changed, path, metadata=FIELDS)
    assert torch.equal(values(path)[0]["wide"], TENSORS["wide"] + 1)


def test_a_file_of_others_loads_and_that_is_said_once(tmp_path, caplog):
    path = tmp_path / "theirs.safetensors"
    save_file(TENSORS, path, metadata=FIELDS)
    with caplog.at_level(logging.INFO):
        assert same(values(path))
        assert same(values(path))
    assert [r.message for r in caplog.records if "no checksums" in r.message] == [
        f"{path} carries no checksums of videotrain: what is read of it is taken as it is"
    ]


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_bytes_in_order_are_those_of_the_file(tmp_path, pieces):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_bytes(TENSORS, {"note": "x" * pieces}))
    assert b"".join(open_weights(path).contents()) == path.read_bytes()
