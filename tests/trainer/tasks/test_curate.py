from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from support.caption_endpoint import ENGLISH, Endpoint

from videotrain_api.resource.stages import CaptionEndpoint, CurateTask
from videotrain_api.storage import layout
from videotrain_trainer.curation.sandbox import Sandbox
from videotrain_trainer.data.manifest import CLIP_SCHEMA, read_table
from videotrain_trainer.data.video import probe
from videotrain_trainer.errors import DataError, StorageDenied
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import curate

TASK = CurateTask(min_seconds=1.0, max_seconds=2.0, long_side=128, max_motion=15)


@pytest.fixture(scope="module")
def golden(tmp_path_factory, paint_video, texture) -> Path:
    """One video of each kind."""
    folder = tmp_path_factory.mktemp("golden") / "raw"
    (folder / "deeper").mkdir(parents=True)
    moving = paint_video(folder / "moving.mp4", 36, texture(1))
    (folder / "moving.txt").write_text("A pattern\n moves  left.")
    (folder / "twin.mp4").write_bytes(moving.read_bytes())
    paint_video(folder / "again.mp4", 36, texture(1), crf=16)
    paint_video(folder / "deeper" / "named.mp4", 60, texture(2), fps=50)
    first, second = texture(3), texture(4)
    paint_video(folder / "cut.mp4", 60, lambda n: first(n) if n < 32 else second(n))
    paint_video(folder / "still.mp4", 30, lambda n: texture(5)(0))
    level = np.linspace(60, 200, 160)[None, :, None]
    paint_video(folder / "blurred.mp4", 30, lambda n: (level + n + np.zeros((96, 160, 3))).astype(np.uint8))
    paint_video(folder / "frantic.mp4", 30, texture(34, speed=5))
    paint_video(folder / "one.mp4", 1, texture(6))
    paint_video(folder / "wide.mp4", 30, texture(7, height=32, width=160))
    paint_video(folder / "short.mp4", 12, texture(8))
    paint_video(folder / "slow.mp4", 30, texture(9), fps=10)
    sky = np.linspace(60, 200, 640)[None, :, None] + np.zeros((384, 1, 3))
    paint_video(folder / "thin.mp4", 30, lambda n: (sky + n).astype(np.uint8), crf=45)
    (folder / "letter.mp4").write_text("I am no video.\n" * 50)
    (folder / "torn.mp4").write_bytes(moving.read_bytes()[:-2000])
    (folder / "notes.md").write_text("not a video either")
    return folder


def run_world(make_context, config, size: int, generation: int = 1) -> list:
    """All ranks of a world, each in a thread as its own process would be."""
    contexts = [make_context(config, rank, size, generation=generation) for rank in range(size)]
    outcomes: dict[int, object] = {}

    def work(rank: int) -> None:
        try:
            outcomes[rank] = curate.run(contexts[rank])
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcomes[rank] for rank in range(size)] == ["completed"] * size
    assert all(record.config_hash == config.hash() for context in contexts for record in context.records.all)
    return [context.records for context in contexts]


def clips(store, prefix: str) -> list[dict]:
    return read_table(store, layout.clip_manifest(prefix), CLIP_SCHEMA).to_pylist()


def report(store, prefix: str) -> dict:
    return json.loads(store.get(layout.drop_report(prefix)))


@pytest.fixture
def few(golden, tmp_path) -> Path:
    """Some of them: two clips of one video, a duplicate, one more kept and one dropped."""
    folder = tmp_path / "few"
    (folder / "deeper").mkdir(parents=True)
    for name in ("cut.mp4", "moving.mp4", "moving.txt", "again.mp4", "letter.mp4", "deeper/named.mp4"):
        shutil.copy(golden / name, folder / name)
    return folder


def test_every_kind_of_video_is_kept_or_dropped_with_its_reason(golden, store, make_config, make_context):
    config = make_config(TASK, videos=golden.as_uri())
    (records,) = run_world(make_context, config, 1)
    found = report(store, config.paths.output)
    reasons = {(item["source"], item["reason"]) for item in found["dropped"]}
    assert reasons - {("again.mp4", "duplicate"), ("moving.mp4", "duplicate")} == {
        ("twin.mp4", "duplicate"),
        ("still.mp4", "still"),
        ("blurred.mp4", "blurred"),
        ("frantic.mp4", "too-fast"),
        ("one.mp4", "one-frame"),
        ("wide.mp4", "aspect"),
        ("short.mp4", "too-short"),
        ("slow.mp4", "low-fps"),
        ("thin.mp4", "low-bitrate"),
        ("letter.mp4", "unreadable"),
        ("torn.mp4", "unreadable"),
    }
    assert found["videos"] == 15
    assert found["counts"]["duplicate"] == 2
    kept = [clip for clip in clips(store, config.paths.output) if clip["kept"]]
    sources = sorted((clip["source"], round(clip["start"], 2), round(clip["end"], 2)) for clip in kept)
    assert sources[0][0] in ("again.mp4", "cut.mp4")
    assert [row for row in sources if row[0] == "cut.mp4"] == [("cut.mp4", 0.0, 1.33), ("cut.mp4", 1.33, 2.5)]
    assert ("deeper/named.mp4", 0.0, 1.2) in sources
    assert len([row for row in sources if row[0] in ("again.mp4", "moving.mp4")]) == 1
    assert found["clips"] == len(kept) == 4
    assert records.all[0].total_steps == 15
    assert records.steps()[-1] == 15
    assert_details({item["source"]: item["detail"] for item in found["dropped"]})
    assert_normalised(store, config.paths.output)


def told(records) -> list[tuple[int, dict[str, int]]]:
    """Clips and drops of each time that a rank told of its set."""
    found = [record.counts for record in records.all if record.kind == "curation"]
    return [(counts.clips, counts.dropped) for counts in found]


def assert_details(details: dict[str, str]) -> None:
    """Measured value and bound."""
    assert details["twin.mp4"] == "same bytes as moving.mp4"
    assert details["wide.mp4"] == "width / height 5 (160x32), allowed 0.333 to 3"
    assert details["slow.mp4"] == "10 fps, at least 16 fps"
    assert details["short.mp4"] == "0.5 s, at least 1 s"
    assert details["still.mp4"].endswith(", at least 0.05")
    assert details["one.mp4"] == "1 frame, at least 2 needed"


def assert_normalised(store, prefix: str) -> None:
    """Kept clips are files of one kind, with captions and scores; nothing else is stored."""
    kept = {clip["source"]: clip for clip in clips(store, prefix) if clip["kept"]}
    named = kept["deeper/named.mp4"]
    assert named["caption"] == "a caption from the manifest"
    assert kept["cut.mp4"]["caption"] == "cut"
    data = store.get(f"{prefix}/{named['uri']}")
    info = probe(data)
    assert (info.width, info.height, float(info.fps), info.frames) == (128, 76, 25.0, 30)
    assert (named["width"], named["height"], named["fps"], named["frames"]) == (128, 76, 25.0, 30)
    assert len(data) == named["bytes"]
    assert named["motion"] > 1
    assert named["blur"] > 5
    assert named["aspect"] == pytest.approx(160 / 96)
    stored = {info.uri.removeprefix(f"{prefix}/") for info in store.list(f"{prefix}/clips")}
    assert stored == {clip["uri"] for clip in clips(store, prefix) if clip["uri"]}


def test_worlds_of_every_size_make_the_same_set(few, store, storage, make_config, make_context):
    sets = []
    for size in (1, 2):
        config = make_config(TASK, videos=few.as_uri(), output=f"{storage.uri}/world-{size}")
        run_world(make_context, config, size)
        objects = {
            info.uri.removeprefix(config.paths.output): store.get(info.uri) for info in store.list(config.paths.output)
        }
        results = {name: json.loads(data)["results"] for name, data in objects.items() if name.startswith("/units")}
        whole = {name: data for name, data in objects.items() if not name.startswith(("/progress", "/units"))}
        sets.append((whole, results))
    assert sets[0] == sets[1]


class AfterFirstClip:
    """A drain that is asked for when a clip is stored."""

    def __init__(self, store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def requested(self) -> bool:
        return bool(self._store.list(f"{self._prefix}/clips"))


def test_a_drained_stage_goes_on_in_another_world_and_makes_the_same_set(
    few, store, storage, make_config, make_context
):
    whole = make_config(TASK, videos=few.as_uri(), output=f"{storage.uri}/whole")
    run_world(make_context, whole, 1)
    config = make_config(TASK, videos=few.as_uri(), output=f"{storage.uri}/broken")
    first = make_context(config, 0, 1, drain=AfterFirstClip(store, config.paths.output))
    assert curate.run(first) == "drained"
    done = first.records.steps()[-1]
    assert 0 < done < 5
    assert told(first.records) == []
    assert not store.exists(layout.clip_manifest(config.paths.output))
    ranks = run_world(make_context, config, 2, generation=2)
    assert ranks[0].all[0].resumed_step == done
    found = report(store, config.paths.output)
    assert [told(records) for records in ranks] == [[(found["clips"], found["counts"])]] * 2
    for uri in (layout.clip_manifest, layout.drop_report):
        assert store.get(uri(config.paths.output)) == store.get(uri(whole.paths.output))


def test_a_drop_report_is_read_again_and_its_damage_names_it(few, store, make_config, make_context, monkeypatch):
    config = make_config(TASK, videos=few.as_uri())
    run_world(make_context, config, 1)
    whole, damaged, readings = ObjectStore.get, 1, []

    def misread(self, uri: str) -> bytes:
        data = whole(self, uri)
        if uri != layout.drop_report(config.paths.output):
            return data
        readings.append(uri)
        return b"{" + data if len(readings) <= damaged else data

    monkeypatch.setattr(ObjectStore, "get", misread)
    assert curate.run(make_context(config, 1, 2)) == "completed"
    damaged = 1000
    with pytest.raises(DataError, match=r"/drop-report\.json: damaged"):
        curate.run(make_context(config, 1, 2))


def test_clips_without_a_text_are_captioned_once_whatever_bounds_change(
    golden, tmp_path, store, storage, make_config, make_context, monkeypatch
):
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("moving.mp4", "moving.txt", "cut.mp4"):
        shutil.copy(golden / name, folder / name)
    endpoint = Endpoint({})
    captions = CaptionEndpoint(url=endpoint.url, model="vlm", frames=2, key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret")
    task = TASK.model_copy(update={"captions": captions})
    run_world(make_context, make_config(task, videos=folder.as_uri()), 1)
    monkeypatch.setattr(Sandbox, "curate", None)  # no video is read again
    config = make_config(task.model_copy(update={"min_motion": 0.1}), videos=folder.as_uri())
    assert curate.run(replace(make_context(config), generation=2)) == "completed"
    endpoint.server.shutdown()
    endpoint.server.server_close()
    found = {(clip["source"], clip["caption"]) for clip in clips(store, config.paths.output)}
    assert found == {("moving.mp4", "A pattern moves left."), ("cut.mp4", f"{ENGLISH} picture")}
    assert endpoint.asked == {"picture": 2}
    assert endpoint.keys == {"Bearer secret"}
    told = report(store, config.paths.output)["captions"]
    assert (told["asked"], told["captioned"], told["missing"], told["tries"]) == (2, 2, {}, 0)


def test_raw_videos_are_read_from_s3(golden, store, storage, s3, make_config, make_context):
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    key = storage.uri.removeprefix("s3://bucket/")
    for name in ("moving.mp4", "moving.txt", "letter.mp4"):
        client.upload_file(str(golden / name), "bucket", f"{key}/raw/{name}")
    config = make_config(TASK, videos=f"{storage.uri}/raw")
    run_world(make_context, config, 1)
    (clip,) = clips(store, config.paths.output)
    assert (clip["source"], clip["caption"]) == ("moving.mp4", "A pattern moves left.")
    assert report(store, config.paths.output)["counts"] == {"unreadable": 1}


def test_a_folder_without_a_video_is_an_error_that_says_what_was_looked_for(tmp_path, make_config, make_context):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "readme.txt").write_text("x")
    config = make_config(TASK, videos=(tmp_path / "raw").as_uri())
    with pytest.raises(DataError, match=r"spec\.dataset\.videos: file://.* holds no video \(1 other files\).*\.mp4"):
        curate.run(make_context(config))


def test_a_folder_that_is_not_there_is_an_error(tmp_path, storage, make_config, make_context):
    with pytest.raises(DataError, match=r"spec\.dataset\.videos"):
        curate.run(make_context(make_config(TASK, videos=(tmp_path / "nowhere").as_uri())))
    with pytest.raises((DataError, StorageDenied), match=r"spec\.dataset\.videos"):
        curate.run(make_context(make_config(TASK, videos="s3://no-such-bucket/raw")))


def test_nothing_kept_is_an_error_that_counts_the_reasons_and_leaves_a_report(
    golden, tmp_path, store, make_config, make_context
):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("letter.mp4", "one.mp4", "wide.mp4"):
        shutil.copy(golden / name, folder / name)
    config = make_config(TASK, videos=folder.as_uri())
    context = make_context(config)
    with pytest.raises(DataError, match=r"none of the 3 videos .* dropped: 1 aspect, 1 one-frame, 1 unreadable"):
        curate.run(context)
    assert told(context.records) == [(0, {"aspect": 1, "one-frame": 1, "unreadable": 1})]
    assert report(store, config.paths.output)["clips"] == 0


def test_a_decoder_that_crashes_costs_one_video_and_the_next_one_is_decoded(tmp_path, paint_video, texture):
    path = paint_video(tmp_path / "long.mp4", 600, texture(1))
    short = paint_video(tmp_path / "short.mp4", 36, texture(2))
    sandbox = Sandbox()
    killed = []

    def kill(share: float) -> None:
        if not killed:
            killed.append(share)
            os.kill(sandbox._child.pid, signal.SIGSEGV)

    result = sandbox.curate(path, "x", tmp_path, TASK, kill)
    assert result["dropped"] == ["decoder-crash", "the decoder process ended with SIGSEGV", None, None]
    assert [clip["kept"] for clip in sandbox.curate(short, "y", tmp_path, TASK, lambda share: None)["clips"]] == [True]
    sandbox.close()


def test_a_decoder_that_is_killed_from_outside_costs_nothing(tmp_path, paint_video, texture):
    path = paint_video(tmp_path / "long.mp4", 200, texture(1))
    sandbox, killed = Sandbox(), []

    def kill(times: int):
        def tell(share: float) -> None:
            if killed.count(sandbox._child.pid) == 0 and len(killed) < times:
                killed.append(sandbox._child.pid)
                os.kill(sandbox._child.pid, signal.SIGKILL)

        return tell

    result = sandbox.curate(path, "x", tmp_path, TASK, kill(2))
    assert len(killed) == 2
    assert result == sandbox.curate(path, "x", tmp_path, TASK, lambda share: None)
    killed.clear()
    assert sandbox.curate(path, "x", tmp_path, TASK, kill(3))["dropped"] == [
        "decoder-crash",
        "the decoder process was killed, 3 times",
        None,
        None,
    ]
    sandbox.close()
