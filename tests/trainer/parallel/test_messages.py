"""What ranks send each other: JSON of a declared type, checked where it is read."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from videotrain_api.storage.artifacts import CheckpointFile, CheckpointManifest
from videotrain_trainer.checkpoint import load
from videotrain_trainer.checkpoint.load import StoredCheckpoint
from videotrain_trainer.checkpoint.state import CheckpointIndex, StoredFile
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.parallel.messages import MOST_BYTES, MOST_GATHERED, check_length, decode, encode
from videotrain_trainer.training import order_check, setup
from videotrain_trainer.training.order_check import RankSteps
from videotrain_trainer.training.step import MicroBatchIds

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBER = st.integers(0, 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
STEPS = st.builds(
    RankSteps,
    trained=st.lists(st.lists(st.builds(MicroBatchIds, micro_batch=NUMBER, ids=st.lists(TEXT))), max_size=3),
    skipped=st.frozensets(TEXT),
)


def stored(ranks: int) -> StoredCheckpoint:
    """A checkpoint of 1,000 parameters under ZeRO stage 1."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    vectors = {"master": 128, "exp_avg": 1 << 20, "exp_avg_sq": 1 << 21, "ema": 1 << 22}
    pieces = [("double_blocks.10.img_attn.qkv.weight", 123456, 1234567)] * 2
    files = [
        StoredFile(
            name=f"rank-{rank:05d}-g000001.safetensors",
            rank=rank,
            bytes=10 << 20,
            crc32c="0123abcd",
            block_crc32c="0123abcd" * 10,
            vectors=vectors,
            pieces=pieces,
        )
        for rank in range(ranks)
    ]
    listed = [CheckpointFile(name=file.name, bytes=file.bytes, crc32c=file.crc32c) for file in files]
    manifest = CheckpointManifest(
        run="default/test",
        stage="s",
        config_hash="0" * 16,
        generation=1,
        step=1,
        world_size=ranks,
        captured_at=now,
        committed_at=now,
        files=listed,
        data_cursor={},
        order=[],
        order_sha256="",
        samples=1,
        crc32c="0123abcd",
    )
    shapes = {f"double_blocks.{number}.img_attn.qkv.weight": [3072, 9216] for number in range(1000)}
    index = CheckpointIndex(block_bytes=1 << 20, shapes=shapes, quantities=["master"], files=files)
    return StoredCheckpoint("s3://bucket/run/stage/checkpoints/step-00000001", manifest, index)


def _changed(found: StoredCheckpoint, cursor: Any, at: datetime, pieces: Any) -> StoredCheckpoint:
    files = [file.model_copy(update={"pieces": pieces}) for file in found.index.files]
    manifest = found.manifest.model_copy(update={"data_cursor": cursor, "captured_at": at})
    return StoredCheckpoint(found.prefix, manifest, found.index.model_copy(update={"files": files}))


STORED = st.builds(
    _changed,
    st.integers(0, 2).map(stored),
    st.dictionaries(TEXT, JSON, max_size=3),
    st.datetimes(timezones=st.just(UTC)),
    st.lists(st.tuples(TEXT, NUMBER, NUMBER), max_size=3),
)
DAMAGE = st.tuples(TEXT, TEXT, TEXT, NUMBER, NUMBER)
FIRST_DAMAGE = st.builds(load._FirstDamage, NUMBER, TEXT, st.none() | NUMBER, TEXT, TEXT, TEXT, NUMBER, NUMBER)
VALUES: list[tuple[TypeAdapter[Any], st.SearchStrategy[Any]]] = [
    (setup._YES_OR_NO, st.booleans()),
    (setup._STEPS, st.lists(NUMBER)),
    (order_check.RANK_STEPS, STEPS),
    (load._NODE, TEXT),
    (load._DAMAGE, st.none() | DAMAGE),
    (load._FIRST_DAMAGE, st.none() | FIRST_DAMAGE),
    (load._WITNESS, st.none() | TEXT),
    (load._ANSWER, st.tuples(st.none() | STORED, st.none() | st.lists(NUMBER))),
]


@given(st.sampled_from(VALUES).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1])))
def test_every_value_arrives_as_it_was(pair):
    kind, value = pair
    arrived = decode(kind, encode(kind, value), 0)
    assert arrived == value
    assert type(arrived) is type(value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle ran",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Trap()),
        pickle.dumps(["step"]),
        b"",
        b"\xff\xfe",
        b"[1, 2",
        b'["1"]',
        b"[1.5]",
        b"{}",
        b"[" * 100_000,
        json.dumps(["x" * 100_000]).encode(),
        b"[1] [2]",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_anything_else_is_refused_with_its_sender_and_in_few_words(data):
    message = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    with pytest.raises(TrainerError, match=r"^rank 3 sent ") as caught:
        decode(setup._STEPS, message, 3)
    assert len(str(caught.value)) < 600


@given(st.binary(max_size=64))
def test_no_bytes_do_anything_but_be_read_or_refused(data):
    message = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    for kind, _ in VALUES:
        try:
            decode(kind, message, 1)
        except TrainerError:
            continue


@pytest.mark.parametrize("length", [-1, 0, MOST_BYTES + 1, 1 << 62])
def test_an_absurd_length_is_refused(length):
    with pytest.raises(TrainerError, match=f"^rank 2 announces a message of {length} bytes; 1 to {MOST_BYTES} "):
        check_length(length, 2)


def test_what_rank_0_holds_of_all_ranks_is_bounded():
    check_length(MOST_GATHERED // 8192, 5, ranks=8192)
    with pytest.raises(TrainerError, match="rank 5 announces"):
        check_length(MOST_GATHERED // 8192 + 1, 5, ranks=8192)


class TestAtEightThousandRanks:
    """Bytes of each message in a world of 1,024 pods with 8 ranks each, at the longest names that there are."""

    RANKS = 8192
    NODE = "n" * 253

    def bytes_of(self, kind, value):
        return encode(kind, value).numel()

    def test_what_every_rank_receives_does_not_grow_with_the_world(self):
        damage = load._FirstDamage(8191, self.NODE, 8190, "s3://" + "u" * 1000, "0123abcd", "p" * 500, 1 << 40, 1 << 40)
        assert self.bytes_of(load._FIRST_DAMAGE, damage) < 2500
        assert self.bytes_of(load._FIRST_DAMAGE, None) == 4
        assert self.bytes_of(load._WITNESS, self.NODE) < 300

    def test_what_rank_0_gathers_is_one_short_message_of_each(self):
        assert self.RANKS * self.bytes_of(load._NODE, self.NODE) < 2.2e6
        assert self.RANKS * self.bytes_of(load._DAMAGE, None) < 4e4
        steps = RankSteps([[MicroBatchIds(8191, ["u" * 16] * 4)]] * 200, frozenset())
        gathered = self.RANKS * self.bytes_of(order_check.RANK_STEPS, steps)
        assert gathered < 2.2e8 < MOST_GATHERED  # 200 steps of 4 samples each: linear in the samples that were trained

    def test_the_index_that_rank_0_reads_for_all_grows_with_the_ranks_that_wrote_it_and_is_sent_once(self):
        small, large = (self.bytes_of(load._ANSWER, (stored(ranks), None)) for ranks in (1024, 8192))
        assert large < 8.1 * small
        assert large < 8e6
