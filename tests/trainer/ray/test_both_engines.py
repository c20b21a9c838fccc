"""The same videos on both engines, with processes and nodes that are killed and one that joins: one catalogue.

Real videos, real decoders and real Ray nodes on this machine; minutes of it, so plain `tox` leaves it out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_api.storage import layout
from videotrain_trainer.curation.publish import publish
from videotrain_trainer.curation.work import CurateWork, find_ranges
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.engines.ray_node import Cluster, RayNode, free_port
from videotrain_trainer.engines.ray_run import RayRun
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

pytestmark = pytest.mark.timeout(1800)
VIDEOS = int(os.environ.get("VIDEOTRAIN_RAY_VIDEOS", "300"))
STORE_BYTES = 100 * 1024**2
TASK = CurateTask(min_seconds=0.5, max_seconds=2.0, long_side=96, min_motion=0.0, min_blur=0.0)
STORAGE = Storage(uri="s3://unused")
TOKEN = "a token that only this cluster knows"


class Records:
    """A record sink that keeps what it gets."""

    def __init__(self) -> None:
        self.all: list = []

    def write(self, record) -> None:
        self.all.append(record)

    def steps(self) -> list[int]:
        return [record.step for record in self.all if record.kind == "step"]


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


@pytest.fixture
def make_member(tmp_path) -> Callable[..., Member]:
    def make(name: str, generation: int = 1, leave: Callable[[], bool] = lambda: False) -> Member:
        records = Records()
        scratch = tmp_path / f"scratch-{name}-{generation}"
        scratch.mkdir()
        return Member(
            prefix=(tmp_path / name).as_uri(),
            generation=generation,
            rank=0,
            size=1,
            saved_step=0,
            grace_seconds=20,
            asked_to_leave=leave,
            reporter=StageReporter(sink=records, generation=generation, stage="curate", config_hash=""),
            scratch=scratch,
        )

    return make


def work_of(member: Member, raw: Path) -> CurateWork:
    return CurateWork(Dataset(videos=raw.as_uri()), STORAGE, member.prefix, TASK)


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


@pytest.fixture
def undisturbed(raw, make_member) -> tuple[bytes, bytes, list[str]]:
    """What the local engine makes in one go."""
    member = make_member("undisturbed")
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    engine = LocalRun(member, store, work, ranges_of(work), 2)
    assert engine.run()
    return published(engine, member, store, work)


def decoders() -> list[psutil.Process]:
    """Decoder processes below this one."""
    return [child for child in psutil.Process().children(recursive=True) if name_of(child) == "vt-decoder"]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


class Disturbed:
    """Does things to a run once it is so far, by its own records; from a thread."""

    def __init__(self, member: Member, *deeds: tuple[int, Callable[[], object]]) -> None:
        self._steps = member.reporter.sink.steps
        self._deeds = list(deeds)
        self.done: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Disturbed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._deeds and not self._over.wait(0.05):
            if self._steps() and self._steps()[-1] >= self._deeds[0][0]:
                at, deed = self._deeds.pop(0)
                deed()
                self.done.append(at)


def kill_a_decoder() -> None:
    found = decoders()
    if found:
        os.kill(found[0].pid, signal.SIGKILL)


def test_a_local_run_whose_decoders_are_killed_and_that_is_left_twice_makes_the_same_catalogue(
    raw, make_member, undisturbed
):
    store = ObjectStore.for_storage(STORAGE)
    for generation, until in ((1, VIDEOS // 3), (2, 2 * VIDEOS // 3), (3, None)):
        leave = threading.Event()
        member = make_member("local", generation, leave.is_set)
        work = work_of(member, raw)
        engine = LocalRun(member, store, work, ranges_of(work), 2)
        deeds = [(1, kill_a_decoder), (VIDEOS // 6, kill_a_decoder)] + ([(until, leave.set)] if until else [])
        with Disturbed(member, *deeds):
            assert engine.run() == (until is None)
    assert published(engine, member, store, work) == undisturbed
    assert decoders() == []


@pytest.fixture
def nodes() -> Iterator[list[RayNode]]:
    started: list[RayNode] = []
    yield started
    for node in started:
        node.close()


def test_a_ray_run_with_a_worker_killed_a_node_killed_and_one_joined_makes_the_same_catalogue(
    raw, make_member, undisturbed, nodes
):
    host = "127.0.0.1"
    cluster = Cluster(f"{host}:{free_port(host)}", TOKEN)
    nodes.append(RayNode(cluster, host, True, 1, store_bytes=STORE_BYTES))
    nodes[0].wait()
    nodes.append(RayNode(cluster, host, False, 1, store_bytes=STORE_BYTES))
    nodes[1].wait()
    member = make_member("ray")
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    seen: set[psutil.Process] = set()

    def kill_a_worker() -> None:
        doers = [process for node in nodes for process in node.processes() if "Doer" in name_of(process)]
        doers += [process for process in decoders() if not doers]
        os.kill(doers[0].pid, signal.SIGKILL)

    def join() -> None:
        nodes.append(RayNode(cluster, host, False, 1, store_bytes=STORE_BYTES))

    def kill_a_node() -> None:
        for process in nodes[1].processes():
            process.kill()

    def note() -> None:
        seen.update(process for node in nodes for process in node.processes())

    deeds = [(VIDEOS // 10, kill_a_worker), (VIDEOS // 5, join), (VIDEOS // 3, kill_a_node), (VIDEOS // 2, note)]
    engine = RayRun(member, store, work, ranges_of(work), cluster)
    with Disturbed(member, *deeds) as disturbed:
        assert engine.run()
    assert disturbed.done == [at for at, _ in deeds]
    assert published(engine, member, store, work) == undisturbed
    for node in nodes:
        node.close()
    nodes.clear()
    assert [process for process in seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_either_engine_goes_on_where_the_other_was(raw, make_member, undisturbed, nodes):
    host = "127.0.0.1"
    leave = threading.Event()
    member = make_member("mixed", 1, leave.is_set)
    work, store = work_of(member, raw), ObjectStore.for_storage(STORAGE)
    with Disturbed(member, (VIDEOS // 3, leave.set)):
        assert not LocalRun(member, store, work, ranges_of(work), 2).run()
    cluster = Cluster(f"{host}:{free_port(host)}", TOKEN)
    nodes.append(RayNode(cluster, host, True, 2, store_bytes=STORE_BYTES))
    nodes[0].wait()
    second = make_member("mixed", 2)
    engine = RayRun(second, store, work, ranges_of(work), cluster)
    assert engine.run()
    started = second.reporter.sink.all[0]
    assert started.resumed_step >= VIDEOS // 3
    assert published(engine, second, store, work) == undisturbed
