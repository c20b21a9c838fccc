"""The sample index: exact, small, mapped once per node, verified as far as it is read."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plain_groups import plain_groups
from support.training_worlds import STORAGE, make_latents, train_config

from videotrain_api.resource.stages import Bucket, LearningRatePiece, Optimizer, ScoreBounds, TrainTask, Validation
from videotrain_api.storage import layout
from videotrain_trainer import cli
from videotrain_trainer.data import sample_index, stage_samples
from videotrain_trainer.data.buckets import row_name
from videotrain_trainer.data.checked_file import BLOCK, CheckedFile, checked_bytes
from videotrain_trainer.data.index_writer import made_in_memory, read_catalogue, write_index
from videotrain_trainer.data.manifest import LATENT_SCHEMA, SCORES, to_parquet
from videotrain_trainer.data.sample_index import index_in_memory, open_index
from videotrain_trainer.data.sets import open_latents
from videotrain_trainer.errors import DamagedObject, DataError, ObjectMissing
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.storage import ObjectStore

TABLE = [
    Bucket(resolution="256px", frames=33, min_frames=5, batch_size=4, keep_probability=0.6),
    Bucket(resolution="256px", frames=17, batch_size=2),
    Bucket(resolution="256px", frames=1, batch_size=8, keep_probability=0.5),
    Bucket(resolution="64px", frames=33, batch_size=3),
    Bucket(resolution="64px", frames=17, batch_size=3),
]
LONGEST = 300


def sample_rows(seed: int, clips: int, hexadecimal: bool = True) -> list[dict]:
    """Catalogue rows of random clips, each encoded for some rows in some windows."""
    draw, rows = random.Random(seed), []
    for number in range(clips):
        clip = f"{draw.getrandbits(80):020x}" if hexadecimal else f"clip {number * 7919 % clips}"
        scores = {name: draw.choice([None, draw.random()]) if name == "blur" else draw.random() for name in SCORES}
        for row in draw.sample(TABLE, draw.randint(1, len(TABLE))):
            for window in range(draw.randint(1, 2)):
                frames = draw.choice([5, 17, row.frames]) if row.min_frames else row.frames
                uid = f"{clip}.{row.resolution[:2]}{row.frames}.{frames}f{window * 40}"
                rows.append(
                    dict.fromkeys(LATENT_SCHEMA.names, 0)
                    | {"uid": uid if hexadecimal else f"{draw.getrandbits(40):x}", "clip": clip, "row": row_name(row)}
                    | {"bucket": f"{row.resolution}/{frames}f/1:1", "shard": f"shards/{draw.randint(0, 3)}.tar"}
                    | {"offset": draw.randrange(2**33), "length": draw.randrange(2**20)}
                    | {"crc32c": draw.getrandbits(32), "text_tokens": draw.randint(1, LONGEST), "source": "x"}
                    | {"latent_frames": frames, "latent_height": 4, "latent_width": 4, "caption": "c"}
                    | scores
                )
    draw.shuffle(rows)
    return rows


def in_memory(rows: list[dict]):
    return index_in_memory("file:///none", *made_in_memory(pa.Table.from_pylist(rows, LATENT_SCHEMA)))


def task_of(**fields) -> TrainTask:
    optimizer = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])
    return TrainTask(steps=1, buckets=fields.pop("buckets", TABLE), optimizer=optimizer, **fields)


@pytest.mark.parametrize("hexadecimal", [True, False])
def test_every_row_comes_back_as_the_catalogue_has_it(hexadecimal):
    rows = sample_rows(1, 60, hexadecimal)
    index, found = in_memory(rows), {}
    for bucket in index.buckets:
        uids = [bucket.uid(number) for number in range(bucket.info.samples)]
        assert uids == sorted(uids)
        assert [stored.tobytes().hex() if hexadecimal else stored.decode() for stored in bucket.clips()] == [
            next(row["clip"] for row in rows if row["uid"] == uid) for uid in uids
        ]
        found |= {uid: (bucket, number) for number, uid in enumerate(uids)}
    assert len(found) == len(rows) == index.samples
    for row in rows:
        bucket, number = found[row["uid"]]
        place = bucket.place(number)
        assert place == (row["uid"], row["shard"], row["offset"], row["length"], row["crc32c"], row["text_tokens"])
        assert bucket.info.bucket == row["bucket"]
        for name in SCORES:
            score = bucket.score(name)[number]
            assert score == row[name] or (row[name] is None and np.isnan(score))


@st.composite
def stages(draw):
    buckets = draw(st.lists(st.sampled_from(TABLE), min_size=1, unique_by=row_name))
    low = draw(st.none() | st.floats(0, 0.6))
    select = [
        ScoreBounds(score=draw(st.sampled_from(["motion", "blur"])), min=low, max=draw(st.none() | st.floats(0.5, 1)))
    ]
    validation = draw(st.none() | st.builds(Validation, share=st.floats(0.05, 0.4), max_samples=st.integers(1, 9)))
    return task_of(
        buckets=buckets,
        select=select if draw(st.booleans()) else [],
        validation=validation,
        attend_padding=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(stages(), st.integers(0, 3), st.integers(0, 40), st.booleans())
def test_a_stage_gets_the_samples_of_the_plain_rules_in_their_order(task, set_seed, seed, hexadecimal):
    rows = sample_rows(set_seed, 40, hexadecimal)
    groups, held_out, selected = plain_groups(rows, task, seed, LONGEST)
    found = stage_samples.stage_samples(in_memory(rows), task, seed, LONGEST, None)
    assert [(g.name, g.row, [g.bucket.uid(g.number(n)) for n in range(g.size)]) for g in found.groups] == [
        (name, row, uids) for name, (row, uids) in groups.items()
    ]
    assert [sample.bucket.uid(sample.number) for sample in found.held_out] == held_out
    assert found.selected == selected
    by_uid = {row["uid"]: row["row"] for row in rows}
    assert [g.rows for g in found.groups] == [tuple(sorted({by_uid[u] for u in uids})) for _, uids in groups.values()]
    assert [sample.row for sample in found.held_out] == [by_uid[uid] for uid in held_out]


def test_a_bucket_of_which_nothing_is_selected_is_left_out():
    nothing = [ScoreBounds(score="motion", min=2.0)]
    for row in TABLE:
        found = stage_samples.stage_samples(
            in_memory(sample_rows(0, 40)), task_of(buckets=[row], select=nothing), 0, LONGEST, None
        )
        assert (found.groups, found.selected) == ((), 0)


def test_the_digest_names_the_samples_however_they_are_grouped():
    rows = sample_rows(5, 50)
    table = [row.model_copy(update={"keep_probability": 1.0}) for row in TABLE]

    def digests(rows, **fields):
        found = stage_samples.stage_samples(in_memory(rows), task_of(buckets=table, **fields), 1, LONGEST, None)
        return sum(group.digest for group in found.groups) % 2**64

    whole = digests(rows)
    assert digests(list(reversed(rows))) == whole
    assert digests(rows, attend_padding=False) == whole
    (_, (_, uids)), *_ = plain_groups(rows, task_of(buckets=table), 1, LONGEST)[0].items()
    (used,), others = [row for row in rows if row["uid"] == uids[0]], [row for row in rows if row["uid"] != uids[0]]
    assert digests(others) != whole
    assert digests([used | {"uid": used["uid"] + "0"}, *others]) != whole


def test_a_row_takes_about_thirty_bytes():
    rows = sample_rows(2, 4000)
    index = in_memory(rows)
    data = sum(bucket.info.file.size for bucket in index.buckets)
    assert data < 40 * len(rows)


def kept_set(folder: Path) -> tuple[str, ObjectStore]:
    uri, store = make_latents(folder), ObjectStore.for_storage(STORAGE)
    write_index(store, uri, read_catalogue(store, uri), store.stat(layout.latent_manifest(uri)).size)
    return uri, store


class Served(ObjectStore):
    """A store of local files that looks like one far away, and counts what is asked."""

    asked: list[str]

    def __init__(self, root: Path) -> None:
        super().__init__(STORAGE)
        self.root, self.asked = root, []

    def _here(self, uri: str) -> str:
        self.asked.append(uri.rsplit("/", 1)[1])
        return uri.replace("s3://far", f"file://{self.root}")

    def get(self, uri):
        return super().get(self._here(uri))

    def get_range(self, uri, offset, length):
        return super().get_range(self._here(uri), offset, length)

    def stat(self, uri):
        return super().stat(self._here(uri))

    def reconnected(self):
        return self


def test_a_node_fetches_the_files_of_a_stage_once_and_a_restart_fetches_none(tmp_path):
    (tmp_path / "far").mkdir()
    kept_set(tmp_path / "far")
    far, cache = Served(tmp_path / "far"), tmp_path / "cache"
    config = train_config(tmp_path, "s3://far/latents", attend_padding=False)

    def places(data):
        found = [data.find(b, n) for b, bucket in enumerate(data.plan.buckets) for n in range(bucket.size)]
        return [group.bucket.place(number) for group, number in found]

    first = places(open_latents(far, config, NodeCache(cache, far)))
    fetched = [name for name in far.asked if name.endswith(".idx")]
    assert len(fetched) == len(set(fetched)) == 2
    far.asked.clear()
    again = open_latents(far, config, NodeCache(cache, far))
    assert places(again) == first
    assert [name for name in far.asked if name.endswith(".idx")] == []
    assert sorted(set(far.asked)) == ["index.json", "manifest.parquet", "set.json"]
    held = [file for file in (cache / "objects").iterdir() if not file.suffix]
    held[0].write_bytes(bytes(held[0].stat().st_size))
    held[1].write_bytes(held[1].read_bytes()[:-1])
    assert places(open_latents(far, config, NodeCache(cache, far))) == first


def test_what_a_stage_chose_stays_on_the_node(tmp_path, monkeypatch):
    uri, store = kept_set(tmp_path)
    config = train_config(tmp_path, uri, validation=Validation(share=0.3), attend_padding=False)
    cache = NodeCache(tmp_path / "cache", store)
    first = open_latents(store, config, cache)
    made = []
    monkeypatch.setattr(stage_samples, "_per_clip", lambda *_: made.append(1))
    again = open_latents(store, config, cache)
    assert again.plan == first.plan
    assert again.plan.fingerprint == first.plan.fingerprint
    assert [(found.number, found.row) for found in again.held_out] == [(f.number, f.row) for f in first.held_out]
    assert [[g.rows for g in of] for of in again.groups] == [[g.rows for g in of] for of in first.groups]
    assert made == []
    monkeypatch.undo()
    (listed,) = (p for p in (tmp_path / "cache" / stage_samples.FOLDER).iterdir() if not p.suffix)
    data = bytearray(listed.with_suffix(".idx").read_bytes())
    data[0] ^= 1
    listed.with_suffix(".idx").write_bytes(data)
    assert open_latents(store, config, cache).plan == first.plan
    listed.write_text("{}")
    assert open_latents(store, config, cache).plan == first.plan


def test_a_set_without_an_index_gets_one_on_the_node_and_says_so(tmp_path, caplog, capsys):
    uri, store = make_latents(tmp_path), ObjectStore.for_storage(STORAGE)
    config = train_config(tmp_path, uri)
    with pytest.raises(ObjectMissing):
        open_index(store, uri, None)
    cache = NodeCache(tmp_path / "cache", store)
    loose, kept = open_latents(store, config), open_latents(store, config, cache)
    assert "has no sample index" in caplog.text
    assert f"videotrain-trainer index {uri}" in caplog.text
    caplog.clear()
    assert cli.main(["index", uri.removeprefix("file://")]) == 0
    assert "17 samples in 2 buckets" in capsys.readouterr().out
    written = open_latents(store, config, cache)
    assert caplog.text == ""
    assert loose.plan.fingerprint == kept.plan.fingerprint == written.plan.fingerprint
    for bucket, size in enumerate(found.size for found in written.plan.buckets):
        uids = [[data.uid(bucket, n) for n in range(size)] for data in (loose, kept, written)]
        assert uids[0] == uids[1] == uids[2]


def test_a_catalogue_that_was_changed_since_is_noticed(tmp_path):
    uri, store = kept_set(tmp_path)
    store.put(layout.latent_manifest(uri), to_parquet(sample_rows(1, 3), LATENT_SCHEMA))
    with pytest.raises(DataError, match="what was changed there is not in the index: write it again: videotrain"):
        open_latents(store, train_config(tmp_path, uri))
    store.delete(layout.latent_manifest(uri))
    assert open_latents(store, train_config(tmp_path, uri)).plan.buckets


def read_all(info, array, again):
    file = CheckedFile(info, array, again)
    return [file.column(name) for name in info.columns]


def test_flipped_bits_anywhere_are_noticed_before_a_row_is_believed():
    columns = {"a": np.arange(60_000, dtype="<u4"), "b": np.arange(7, dtype="<u2")}
    info, data = checked_bytes("x", columns)
    assert len(data) == info.size > 3 * BLOCK
    draw = random.Random(1)
    for _ in range(300):
        place = draw.randrange(len(data))
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << draw.randrange(8)
        array = np.frombuffer(bytes(spoilt), np.uint8)
        with pytest.raises(DamagedObject, match=r"does not fit its checksum|other checksums"):
            read_all(info, array, lambda spoilt=spoilt: bytes(spoilt))
        healed = CheckedFile(info, array, lambda: data)
        assert all((healed.column(name) == column).all() for name, column in columns.items())
        number = draw.randrange(60_000)
        assert CheckedFile(info, array, lambda: data).row("a", number) == number


def test_a_row_costs_one_block_and_no_row_is_an_object(tmp_path):
    _, data = checked_bytes("x", {"a": np.arange(10**6, dtype="<u4")})
    info, _ = checked_bytes("x", {"a": np.arange(10**6, dtype="<u4")})
    file = CheckedFile(info, np.frombuffer(data, np.uint8), bytes)
    asked = []
    file._block_fits = lambda number: asked.append(number) or True
    for number in range(1000):
        assert file.row("a", number) == number
    assert asked == [0]


def test_ten_times_the_rows_are_no_more_objects(tmp_path):
    made = []
    for rows in (sample_rows(4, 30), sample_rows(4, 300)):
        info, files = made_in_memory(pa.Table.from_pylist(rows, LATENT_SCHEMA))
        gc.collect()
        before = len(gc.get_objects())
        found = stage_samples.stage_samples(index_in_memory("file:///none", info, files), task_of(), 1, LONGEST, None)
        made.append((len(gc.get_objects()) - before, sum(group.size for group in found.groups)))
    (few, of_few), (many, of_many) = made
    assert of_many > 5 * of_few
    assert many - few < (of_many - of_few) / 2  # what there is belongs to buckets, kinds and groups


def test_parts_that_several_processes_write_make_the_index_of_one(tmp_path):
    from videotrain_trainer.data.index_writer import buckets_of, publish_index, write_bucket

    store, rows = ObjectStore.for_storage(STORAGE), sample_rows(3, 30)
    table = pa.Table.from_pylist(rows, LATENT_SCHEMA)
    one = write_index(store, (tmp_path / "one").as_uri(), table, None)
    parts = [write_bucket(store, (tmp_path / "two").as_uri(), columns) for columns in reversed(list(buckets_of(table)))]
    two = publish_index(store, (tmp_path / "two").as_uri(), parts, None)
    assert one == two
    files = [sorted(path.name for path in (tmp_path / name / "index").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    assert (tmp_path / "one/index/index.json").read_bytes() == (tmp_path / "two/index/index.json").read_bytes()
    assert one.version == sample_index.INDEX_VERSION
