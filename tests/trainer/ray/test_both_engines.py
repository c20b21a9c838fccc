"""The same videos on both engines, with processes and nodes that are killed and one that joins: one catalogue.

Real videos, real decoders and real Ray nodes on this machine; minutes of it, so plain `tox` leaves it out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.ray_nodes import decoders, disturbed

from videotrain_api.resource.stages import CurateTask
from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_api.storage import layout
from videotrain_trainer.curation.publish import publish
from videotrain_trainer.curation.work import CurateWork, find_ranges
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.engines.ray_run import RayRun
from videotrain_trainer.models.image_scorer import open_image_model
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.timeout(1800)
VIDEOS = int(os.environ.get("VIDEOTRAIN_RAY_VIDEOS", "300"))
TASK = CurateTask(min_seconds=0.5, max_seconds=2.0, long_side=96, min_motion=0.0, min_blur=0.0)
STORAGE = Storage(uri="s3://unused")


@pytest.fixture(scope="session")
def raw(tmp_path_factory, paint_video, texture) -> Path:
    """Videos of which every tenth is another's copy and every fifteenth no video; one in three has a text."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(VIDEOS):
        path = folder / f"{number // 50}" / f"clip-{number:04d}.mp4"
        path.parent.mkdir(exist_ok=True)
        if number % 15 == 14:
            path.write_text(f"no video {number}")
        elif number % 10 == 9:
            path.write_bytes((folder / f"{(number - 1) // 50}" / f"clip-{number - 1:04d}.mp4").read_bytes())
        else:
            paint_video(path, 16, texture(number, height=48, width=64), crf=28)
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"pattern number {number}")
    return folder


def work_of(member: Member, raw: Path) -> CurateWork:
    return CurateWork(Dataset(videos=raw.as_uri()), STORAGE, member.prefix, TASK, open_image_model)


def ranges_of(work: CurateWork) -> Iterator:
    return find_ranges(work)


def catalogue(store: ObjectStore, member: Member) -> tuple[bytes, bytes, list[str]]:
    """Manifest, report and names of clips."""
    clips = [info.uri.rsplit("/", 1)[1] for info in store.list(f"{member.prefix}/clips")]
    return store.get(layout.clip_manifest(member.prefix)), store.get(layout.drop_report(member.prefix)), clips


def published(engine, member: Member, store: ObjectStore, work: CurateWork) -> tuple[bytes, bytes, list[str]]:
    names = [result["name"] for result in engine.board.results(engine.names())]
    assert len(names) == VIDEOS
    assert set(Counter(names).values()) == {1}
    publish(member, store, work, engine.board.results(engine.names()))
    return catalogue(store, member)


@pytest.fixture(scope="session")
def undisturbed(raw, make_member, tmp_path_factory) -> tuple[bytes, bytes, list[str]]:
    """What the local engine makes in one go."""
    member = make_member(tmp_path_factory.mktemp("undisturbed"))
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    engine = LocalRun(member, store, work, ranges_of(work), 2)
    assert engine.run()
    return published(engine, member, store, work)


def kill_one(processes: list[psutil.Process]) -> None:
    if processes:
        os.kill(processes[0].pid, signal.SIGKILL)


def test_a_local_run_whose_decoders_are_killed_and_that_is_left_twice_makes_the_same_catalogue(
    raw, make_member, undisturbed, tmp_path
):
    store = ObjectStore.for_storage(STORAGE)
    for generation, until in ((1, VIDEOS // 3), (2, 2 * VIDEOS // 3), (3, None)):
        leave = threading.Event()
        member = make_member(tmp_path, generation, leave.is_set)
        work = work_of(member, raw)
        engine = LocalRun(member, store, work, ranges_of(work), 2)
        deeds = [(at, lambda: kill_one(decoders())) for at in (1, VIDEOS // 6)]
        with disturbed(member, *deeds, *([(until, leave.set)] if until else [])):
            assert engine.run() == (until is None)
    assert published(engine, member, store, work) == undisturbed
    assert decoders() == []


def test_a_ray_run_with_a_worker_killed_a_node_killed_and_one_joined_makes_the_same_catalogue(
    raw, make_member, undisturbed, nodes, tmp_path
):
    nodes.start()
    nodes.start()
    member = make_member(tmp_path)
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    engine = RayRun(member, store, work, ranges_of(work), nodes.cluster)
    deeds = [
        (VIDEOS // 10, lambda: kill_one(nodes.workers())),
        (VIDEOS // 5, lambda: nodes.start(wait=False)),
        (VIDEOS // 3, lambda: nodes.kill(1)),
        (VIDEOS // 2, nodes.note),
    ]
    with disturbed(member, *deeds) as done:
        assert engine.run()
    assert done == [at for at, _ in deeds]
    assert published(engine, member, store, work) == undisturbed
    nodes.close()
    assert nodes.left() == []


def test_either_engine_goes_on_where_the_other_was(raw, make_member, undisturbed, nodes, tmp_path):
    leave = threading.Event()
    member = make_member(tmp_path, 1, leave.is_set)
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    with disturbed(member, (VIDEOS // 3, leave.set)):
        assert not LocalRun(member, store, work, ranges_of(work), 2).run()
    nodes.start(cpus=2)
    leave.clear()
    second = make_member(tmp_path, 2, leave.is_set)
    with disturbed(second, (2 * VIDEOS // 3, leave.set)):
        assert not RayRun(second, store, work, ranges_of(work), nodes.cluster).run()
    third = make_member(tmp_path, 3)
    engine = LocalRun(third, store, work, ranges_of(work), 2)
    assert engine.run()
    for before, after, least in ((member, second, VIDEOS // 3), (second, third, 2 * VIDEOS // 3)):
        kept = [record.step for record in before.reporter.sink.all if record.kind == "checkpoint"]
        assert after.reporter.sink.all[0].resumed_step == kept[-1] >= least
    assert published(engine, third, store, work) == undisturbed
