"""Raw sources as they are published: sidecars, lists of paths and texts, tar files; misfits are named by row."""

from __future__ import annotations

import csv
import io
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tars import tar_of

from videotrain_api.resource.sources import Source
from videotrain_api.resource.stages import CurateTask
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.storage import layout
from videotrain_trainer.curation import source_parquet, source_tars
from videotrain_trainer.curation.source import RawVideo, VideoFolder
from videotrain_trainer.curation.source_forms import VideoList, open_sources
from videotrain_trainer.curation.source_parquet import VideoRows
from videotrain_trainer.curation.source_tars import VideoShards
from videotrain_trainer.curation.work import CurateWork
from videotrain_trainer.data.manifest import CLIP_SCHEMA, read_table
from videotrain_trainer.errors import DataError
from videotrain_trainer.models.image_scorer import open_image_model
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import curate

ROWS = [
    {"path": "a.mp4", "text": "A red  car."},
    {"path": "deeper/b c.mp4", "text": "Blue."},
    {"path": "d.mp4", "text": None},
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory, paint_video, texture):
    """Three videos in a folder."""
    folder = tmp_path_factory.mktemp("forms") / "videos"
    (folder / "deeper").mkdir(parents=True)
    for number, row in enumerate(ROWS):
        paint_video(folder / row["path"], 36, texture(number))
    return folder


def write_list(path, rows):
    """A list in the form that its ending says."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    return path.as_uri()


def listed(uri, storage, form=VideoList):
    return [(video.name, video.caption) for video in form(uri, storage, "own").videos({})]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".json"])
def test_a_list_names_videos_beside_it_and_their_texts(clips, storage, ending):
    uri = write_list(clips / f"list{ending}", [row | {"num_frames": 36} for row in ROWS])
    assert listed(uri, storage) == [("own/a.mp4", "A red car."), ("own/deeper/b c.mp4", "Blue."), ("own/d.mp4", "d")]


@pytest.mark.parametrize(
    "rows",
    [
        [{"file_name": row["path"], "caption": row["text"]} for row in ROWS[:2]],
        [{"path": row["path"], "cap": [row["text"], "another"], "fps": 24} for row in ROWS[:2]],
        [{"video": row["path"], "prompt": row["text"]} for row in ROWS[:2]],
    ],
)
def test_columns_may_have_the_names_of_published_lists(clips, storage, rows):
    assert listed(write_list(clips / "metadata.jsonl", rows), storage) == [
        ("own/a.mp4", "A red car."),
        ("own/deeper/b c.mp4", "Blue."),
    ]


def test_a_list_in_the_object_store_may_name_videos_in_another_bucket_and_a_folder_of_tables(
    clips, store, storage, tmp_path
):
    store.put(f"{storage.uri}/far/x y.mp4", (clips / "a.mp4").read_bytes())
    store.put(f"{storage.uri}/lists/near.mp4", (clips / "d.mp4").read_bytes())
    for number, path in enumerate((f"{storage.uri}/far/x y.mp4", "near.mp4")):
        write_list(tmp_path / "part.parquet", [{"path": path, "text": f"text {number}"}])
        store.put(f"{storage.uri}/lists/{number}.parquet", (tmp_path / "part.parquet").read_bytes())
    source = VideoList(f"{storage.uri}/lists", storage, "own")
    found = list(source.videos({}))
    assert [video.caption for video in found] == ["text 0", "text 1"]
    assert [source.fetch(video, tmp_path).read_bytes() for video in found] == [
        (clips / name).read_bytes() for name in ("a.mp4", "d.mp4")
    ]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*ROWS, {"path": "none.mp4", "text": "x"}], r"row 4: file://.*/none\.mp4 is not there"),
        ([*ROWS, ROWS[1]], r"row 4: 'deeper/b c\.mp4' stands in row 2 already"),
        ([ROWS[0], {"path": "", "text": "x"}], r"row 2: no path in the column"),
        ([ROWS[0], {"path": "a.txt", "text": "x"}], r"row 2: 'a\.txt' is no video: \.avi"),
        ([{"uri": "a.mp4"}], r"row 1: no column path or file_name or video; it has uri"),
        ([ROWS[0], {"path": "d.mp4", "text": 3}], r"row 2: no text; one of the fields"),
        (["a.mp4"], r"row 1: 'a\.mp4' has no columns"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(clips, storage, rows, told):
    with pytest.raises(DataError, match=r"^spec\.dataset\.sources\[own\]: file://.*list\.json:? .*" + told):
        listed(write_list(clips / "list.json", rows), storage)


@pytest.mark.parametrize(
    ("name", "content"), [("l.json", b"{"), ("l.jsonl", b"{}\nx"), ("l.parquet", b"PAR1"), ("l.csv", b"\xff\xfe")]
)
def test_what_is_no_list_is_refused(tmp_path, storage, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^spec\.dataset\.sources\[own\]: .*{name}"):
        listed((tmp_path / name).as_uri(), storage)
    with pytest.raises(DataError, match=r"^spec\.dataset\.sources\[own\]: .*none"):
        listed((tmp_path / "none.csv").as_uri(), storage)


@pytest.mark.parametrize("where", ["store", "folder"])
def test_tar_files_hold_videos_with_their_texts(clips, store, storage, tmp_path, where):
    videos = [(clips / row["path"]).read_bytes() for row in ROWS]
    first = tar_of(
        {"0001.txt": b"One.\n", "0001.mp4": videos[0], "0002.mp4": videos[1], "0002.json": b'{"caption": "Two."}'}
    )
    second = tar_of({"deep/k.1.mp4": videos[2], "deep/k.jpg": b"x", "README": b"x"})
    root = storage.uri if where == "store" else tmp_path.as_uri()
    store.put(f"{root}/shards/00000.tar", first)
    store.put(f"{root}/shards/00001.tar", second)
    source = VideoShards(f"{root}/shards", storage, "own")
    found = list(source.videos({}))
    assert [(video.name, video.caption) for video in found] == [
        ("own/00000.tar/0001.mp4", "One."),
        ("own/00000.tar/0002.mp4", "Two."),
        ("own/00001.tar/deep/k.1.mp4", "k 1"),
    ]
    assert [source.fetch(video, tmp_path).read_bytes() for video in found] == videos
    assert len({video.tag for video in found}) == 3


def test_listing_tar_files_asks_once_for_a_small_one_and_once_a_video_for_a_large_one(store, storage, monkeypatch):
    """Texts come with the headers, before a video or behind it; that of the last one ends the file."""
    members = {}
    for number in range(20):
        members |= {f"{number:02d}.txt": b"before", f"{number:02d}.mp4": bytes(70_000), f"{number:02d}.json": b"{}"}
    store.put(f"{storage.uri}/shards/0.tar", tar_of(members))
    asked, get_range = [], ObjectStore.get_range
    monkeypatch.setattr(ObjectStore, "get_range", lambda self, *of: asked.append(of[1:]) or get_range(self, *of))
    small = listed(f"{storage.uri}/shards", storage, VideoShards)
    assert len(small) == 20
    assert {caption for _, caption in small} == {"before"}
    assert len(asked) == 1
    asked.clear()
    monkeypatch.setattr(source_tars, "WHOLE_BYTES", 0)
    assert listed(f"{storage.uri}/shards", storage, VideoShards) == small
    assert len(asked) <= 20 + 2
    assert sum(length for _, length in asked) <= 22 * source_tars.HEADER_BYTES


def test_tar_files_are_listed_at_the_same_time_and_videos_come_in_their_order(store, storage, monkeypatch):
    for number in range(4):
        store.put(f"{storage.uri}/shards/{number}.tar", tar_of({f"{number}.mp4": b"x"}))
    together, get_range = threading.Barrier(4, timeout=60), ObjectStore.get_range

    def with_others(self, *of):
        together.wait()
        return get_range(self, *of)

    monkeypatch.setattr(ObjectStore, "get_range", with_others)
    names = [name for name, _ in listed(f"{storage.uri}/shards", storage, VideoShards)]
    assert names == [f"own/{number}.tar/{number}.mp4" for number in range(4)]


def test_damaged_and_empty_tar_files_are_refused_by_name(clips, store, storage):
    store.put(f"{storage.uri}/torn/0.tar", tar_of({"a.mp4": bytes(4000), "b.mp4": bytes(4000)})[:6000])
    with pytest.raises(DataError, match=r"sources\[own\]: s3://.*/torn/0\.tar: not a whole tar file"):
        listed(f"{storage.uri}/torn", storage, VideoShards)
    store.put(f"{storage.uri}/empty/0.tar", tar_of({"a.npy": b"x"}))
    with pytest.raises(DataError, match=r"sources\[own\]: s3://.*/empty holds no video \(1 tar files\)"):
        listed(f"{storage.uri}/empty", storage, VideoShards)
    store.put(f"{storage.uri}/textless/0.tar", tar_of({"a.mp4": b"x", "a.json": b'{"fps": 3}'}))
    with pytest.raises(DataError, match=r"textless/0\.tar: a\.json: no text; one of the fields text, caption"):
        listed(f"{storage.uri}/textless", storage, VideoShards)


def test_a_long_text_is_refused_by_name_and_read_by_nobody(store, storage, monkeypatch):
    asked, get_range = [], ObjectStore.get_range
    monkeypatch.setattr(ObjectStore, "get_range", lambda self, *of: asked.append(of[2]) or get_range(self, *of))
    monkeypatch.setattr(source_tars, "WHOLE_BYTES", 0)
    long = bytes(source_tars.MOST_TEXT_BYTES + 1)
    store.put(f"{storage.uri}/beside/0.tar", tar_of({"a.txt": long, "a.mp4": b"x"}))
    with pytest.raises(DataError, match=r"beside/0\.tar: a\.txt has 1048577 bytes; the text beside .* at most 1048576"):
        listed(f"{storage.uri}/beside", storage, VideoShards)
    store.put(f"{storage.uri}/apart/0.tar", tar_of({"a.mp4": b"x", "b.json": long}))
    assert listed(f"{storage.uri}/apart", storage, VideoShards) == [("own/0.tar/a.mp4", "a")]
    assert sum(asked) < len(long)


def parquet_of(rows, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def video_rows(videos, **more):
    """As `datasets` writes a column of videos."""
    return [
        {"id": n, "video": {"bytes": data, "path": f"sub/{n}.mp4"}, "caption": f"Text  {n}."} | more
        for n, data in enumerate(videos)
    ]


@pytest.mark.parametrize("where", ["store", "folder"])
def test_parquet_files_hold_videos_with_their_texts(clips, store, storage, tmp_path, where):
    """Of another width of row groups, with bytes alone, without texts."""
    videos = [(clips / row["path"]).read_bytes() for row in ROWS]
    root = f"{storage.uri if where == 'store' else tmp_path.as_uri()}/tables"
    store.put(f"{root}/data/train-0.parquet", parquet_of(video_rows(videos), row_group_size=2))
    store.put(f"{root}/data/train-1.parquet", parquet_of([{"mp4": videos[1]}, {"mp4": videos[2]}]))
    store.put(f"{root}/README.md", b"x")
    source = VideoRows(f"{root}", storage, "own")
    found = list(source.videos({}))
    assert [(video.name, video.caption) for video in found] == [
        *((f"own/data/train-0.parquet/sub/{n}.mp4", f"Text {n}.") for n in range(3)),
        *((f"own/data/train-1.parquet/00000{n}.mp4", f"00000{n}") for n in range(2)),
    ]
    assert len({video.tag for video in found}) == 5
    sent = [RawVideo.from_fields(json.loads(json.dumps(video.fields()))) for video in found]
    for turn in (sent, sent[::-1], sent[1::2]):
        of_each = {id(video): (videos + videos[1:])[sent.index(video)] for video in turn}
        assert [source.fetch(video, tmp_path).read_bytes() for video in turn] == [of_each[id(v)] for v in turn]


def test_rows_that_are_asked_for_in_their_order_are_read_twice_and_listing_reads_no_videos(
    store, storage, tmp_path, monkeypatch
):
    """Two readings of each must agree; bytes are asked for by the row group's column, not by the row."""
    videos = [bytes([n]) * 300_000 for n in range(10)]
    data = parquet_of(video_rows(videos), row_group_size=5, compression="none", use_dictionary=False)
    store.put(f"{storage.uri}/tables/0.parquet", data)
    asked, get_range = [], ObjectStore.get_range
    monkeypatch.setattr(ObjectStore, "get_range", lambda self, *of: asked.append(of[2]) or get_range(self, *of))
    source = VideoRows(f"{storage.uri}/tables", storage, "own")
    found = list(source.videos({}))
    assert sum(asked) < 300_000
    asked.clear()
    assert [source.fetch(video, tmp_path).read_bytes() for video in found] == videos
    assert 2 * len(data) * 0.9 < sum(asked) < 2 * len(data) * 1.2


def test_workers_that_share_row_groups_have_each_decoded_once_for_all_of_them(store, storage, tmp_path, monkeypatch):
    """Twelve threads, three files of one large row group each, and two readings of each row."""
    videos = [bytes([n]) * 50_000 for n in range(120)]
    for number in range(3):
        part = video_rows(videos[40 * number : 40 * number + 40])
        store.put(f"{storage.uri}/tables/{number}.parquet", parquet_of(part, row_group_size=40))
    decoded, batches = [], pq.ParquetFile.iter_batches

    def counted(*of, **more):
        for batch in batches(*of, **more):
            decoded.append(1)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    dataset = Dataset(sources=[Source(name="own", form="parquet", uri=f"{storage.uri}/tables")])
    work = CurateWork(dataset, storage, storage.uri, CurateTask(), open_image_model)
    assert set(pickle.loads(pickle.dumps(work)).sources) == {"own"}
    source = work.sources["own"]
    found = list(source.videos({}))

    def fetched(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        return source.fetch(found[number], folder).read_bytes()

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(fetched, range(120))) == videos
    assert len(decoded) == 2 * 120


def test_a_row_that_was_passed_and_given_up_is_read_again(store, storage, tmp_path, monkeypatch):
    monkeypatch.setattr(source_parquet, "MOST_PARKED_BYTES", 0)
    videos = [bytes([n]) * 1000 for n in range(6)]
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows(videos)))
    source = VideoRows(f"{storage.uri}/tables", storage, "own")
    found = list(source.videos({}))
    assert [source.fetch(found[n], tmp_path).read_bytes() for n in (4, 1, 5, 0)] == [videos[n] for n in (4, 1, 5, 0)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PAR1", r"cannot be read as Parquet"),
        (parquet_of([{"path": "a.mp4", "text": "x"}]), r"it has path, text; a table of paths is a source of form list"),
        (parquet_of(video_rows([b"x", None])), r"1 of 2 rows of row group 0 have no bytes; paths of videos that"),
        (parquet_of(video_rows([b"x"], video={"bytes": b"x", "path": "a.bin"})), r"row 1: 'a\.bin' is no video"),
        (parquet_of(video_rows([b"x", b"y"], video={"bytes": b"x", "path": "a.mp4"})), r"row 2: .* stands in row 1"),
        (
            parquet_of(video_rows([b"x"], video={"bytes": {"bytes": b"x"}})),
            r"no column .* with bytes of videos; it has",
        ),
        (parquet_of(video_rows([b"x"], caption=3)), r"row 1: no text; one of the fields"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused_by_name(store, storage, content, told):
    store.put(f"{storage.uri}/tables/0.parquet", content)
    with pytest.raises(DataError, match=r"^spec\.dataset\.sources\[own\]: s3://.*0\.parquet: .*" + told):
        listed(f"{storage.uri}/tables", storage, VideoRows)


def test_a_folder_without_parquet_files_and_rows_without_bytes_are_refused(store, storage, tmp_path):
    store.put(f"{storage.uri}/tables/a.txt", b"x")
    with pytest.raises(DataError, match=r"tables holds no video \(0 \.parquet files\)"):
        listed(f"{storage.uri}/tables", storage, VideoRows)
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([b"x", b""])))
    source = VideoRows(f"{storage.uri}/tables", storage, "own")
    first, empty = source.videos({})
    assert source.fetch(first, tmp_path).read_bytes() == b"x"
    with pytest.raises(DataError, match=r"0\.parquet: row 2 has no bytes"):
        source.fetch(empty, tmp_path)


def test_a_row_group_that_is_too_large_is_refused(store, storage, monkeypatch):
    monkeypatch.setattr(source_parquet, "MOST_GROUP_BYTES", 1000)
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([bytes(400), bytes(800)]), use_dictionary=False))
    with pytest.raises(DataError, match=r"0\.parquet: row group 0 holds \d+ bytes of videos, more than 1000; write"):
        listed(f"{storage.uri}/tables", storage, VideoRows)


def test_a_parquet_file_with_fewer_rows_than_its_footer_says_is_refused(store, storage, tmp_path, monkeypatch):
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([b"x", b"y"])))
    source = VideoRows(f"{storage.uri}/tables", storage, "own")
    batches, group = pq.ParquetFile.iter_batches, pq.ParquetFile.read_row_group
    _, second = source.videos({})
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "iter_batches", lambda *of, **more: islice(batches(*of, **more), 1))
        with pytest.raises(DataError, match=r"0\.parquet: ends before row 2"):
            source.fetch(second, tmp_path)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *of, **more: group(*of, **more).slice(1))
    with pytest.raises(DataError, match=r"0\.parquet: row group 0 has 1 rows, its footer says 2"):
        listed(f"{storage.uri}/tables", storage, VideoRows)


def test_a_parquet_file_that_was_replaced_is_told(store, storage, tmp_path):
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([b"x"])))
    source = VideoRows(f"{storage.uri}/tables", storage, "own")
    (video,) = source.videos({})
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([b"y"])))
    with pytest.raises(DataError, match=r"0\.parquet: is not the file that was listed"):
        source.fetch(video, tmp_path)


def test_a_folder_has_texts_in_json_files_beside_its_videos(clips, storage, tmp_path):
    (tmp_path / "a.mp4").write_bytes((clips / "a.mp4").read_bytes())
    (tmp_path / "a.json").write_text('{"caption": "From\\n JSON.", "fps": 24}')
    folder = VideoFolder(tmp_path.as_uri(), storage)
    (video,) = folder.videos({})
    assert folder.caption(video) == "From JSON."
    (tmp_path / "a.json").write_text('{"fps": 24}')
    assert folder.caption(video) == "a", "it is there for something else"
    (tmp_path / "a.json").write_text('{"caption": 3}')
    with pytest.raises(DataError, match=r"a\.json: no text"):
        folder.caption(video)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        folder.caption(video)
    (tmp_path / "a.txt").write_text("The text file counts.")
    (video,) = folder.videos({})
    assert folder.caption(video) == "The text file counts."


def test_all_forms_are_curated_into_one_set(clips, store, storage, make_config, make_context, paint_video, texture):
    store.put(f"{storage.uri}/shards/0.tar", tar_of({"k.txt": b"In a tar.", "k.mp4": (clips / "d.mp4").read_bytes()}))
    other = clips.parent / "other.mp4"
    paint_video(other, 36, texture(9))
    store.put(f"{storage.uri}/tables/0.parquet", parquet_of(video_rows([other.read_bytes()])))
    (clips / "only.csv").write_text("path,text\na.mp4,In a list.\n")
    dataset = Dataset(
        sources=[
            Source(name="folder", uri=(clips / "deeper").as_uri()),
            Source(name="list", form="list", uri=(clips / "only.csv").as_uri()),
            Source(name="tables", form="parquet", uri=f"{storage.uri}/tables"),
            Source(name="tars", form="webdataset", uri=f"{storage.uri}/shards"),
        ]
    )
    assert list(open_sources(dataset, storage)) == ["folder", "list", "tables", "tars"]
    config = make_config(CurateTask(min_seconds=1.0)).model_copy(update={"dataset": dataset})
    assert curate.run(make_context(config)) == "completed"
    rows = read_table(store, layout.clip_manifest(config.paths.output), CLIP_SCHEMA).to_pylist()
    assert {row["source"]: row["caption"] for row in rows if row["kept"]} == {
        "folder/b c.mp4": "b c",
        "list/a.mp4": "In a list.",
        "tables/0.parquet/sub/0.mp4": "Text 0.",
        "tars/0.tar/k.mp4": "In a tar.",
    }
