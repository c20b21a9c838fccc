"""A sealed object is read as it was written, or refused: whatever bit of it flips."""

import random

import pyarrow as pa
import pytest

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.checksums import read_checked, sealed_json, sealed_parquet, unsealed_json, unsealed_parquet
from videotrain_trainer.data.manifest import CLIP_SCHEMA
from videotrain_trainer.errors import DamagedObject, ObjectMissing
from videotrain_trainer.storage import ObjectStore

ROWS = [dict.fromkeys(CLIP_SCHEMA.names) | {"uid": f"{n:04}", "caption": f"clip {n}"} for n in range(50)]
TABLE = pa.Table.from_pylist(ROWS, schema=CLIP_SCHEMA)
FIELDS = {"samples": 12, "rows": ["256px 1f", "ü"], "share": 0.1, "trim": False}
KINDS = [(sealed_json(FIELDS), unsealed_json, FIELDS), (sealed_parquet(TABLE), unsealed_parquet, TABLE)]


def flipped(data: bytes, bit: int) -> bytes:
    harmed = bytearray(data)
    harmed[bit // 8] ^= 1 << bit % 8
    return bytes(harmed)


@pytest.mark.parametrize(("data", "read", "wanted"), KINDS, ids=["json", "parquet"])
def test_no_single_bit_gives_another_value(data, read, wanted):
    assert read(data) == wanted
    bits = range(8 * len(data))
    refused = 0
    for bit in bits if len(bits) < 3000 else random.Random(7).sample(bits, 3000):
        try:
            found = read(flipped(data, bit))
        except (ValueError, OSError, pa.ArrowException):
            refused += 1
        else:
            assert found == wanted, f"bit {bit}"
    assert refused > 1500 or len(bits) < 1500


def test_one_misread_bit_is_read_again_and_lasting_damage_names_the_object(store, root_uri, monkeypatch):
    data = sealed_json(FIELDS)
    answers = [flipped(data, 99), data]
    # Of the class: the second reading goes through a store with connections of its own.
    monkeypatch.setattr(ObjectStore, "get", lambda _, uri: answers.pop(0))
    assert read_checked(store, root_uri, unsealed_json) == FIELDS
    monkeypatch.setattr(ObjectStore, "get", lambda _, uri: data[:40])
    with pytest.raises(DamagedObject, match=r"^s3://bucket/set\.json: damaged") as failed:
        read_checked(store, root_uri, unsealed_json)
    assert failed.value.exit_code == ExitCode.CHECKPOINT, "the machine that reads is replaced before the run fails"


def test_an_object_that_is_missing_once_is_asked_for_again(store, root_uri, monkeypatch):
    found = ObjectStore.get

    def missing_once(self, uri):
        monkeypatch.setattr(ObjectStore, "get", found)
        raise ObjectMissing(uri)

    store.put(root_uri, sealed_json(FIELDS))
    monkeypatch.setattr(ObjectStore, "get", missing_once)
    assert read_checked(store, root_uri, unsealed_json) == FIELDS
    store.delete(root_uri)
    with pytest.raises(ObjectMissing):
        read_checked(store, root_uri, unsealed_json)


@pytest.fixture
def root_uri() -> str:
    return "s3://bucket/set.json"
