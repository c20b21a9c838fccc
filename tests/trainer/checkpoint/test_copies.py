"""Copies of the state in memory, by ranks that are threads: passed on, lost with a pod, damaged, shared out anew."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.checkpoint_worlds import NOW, FakeState, Records, ThreadPeers, make_member

from videotrain_trainer.checkpoint.copies import CopyFolder
from videotrain_trainer.checkpoint.copy_maker import CopyMaker, Moment
from videotrain_trainer.checkpoint.copy_restore import restore_copies
from videotrain_trainer.worker.stage_reporter import StageReporter

KEY = b"k" * 32
NODE_RANKS = 2


class Belt:
    """The way to the next pod, for threads."""

    def __init__(self, lines, rank, size):
        self._out, self._in = lines[(rank + NODE_RANKS) % size], lines[rank]

    def pass_on(self, header, data, into):
        self._out.put((header, data.clone()))
        found, bytes_ = self._in.get(timeout=20)
        if found:
            into(found).copy_(bytes_)
        return found


class World:
    """Pods of two ranks each; a pod's folder is its memory."""

    def __init__(self, root, pods, generation, key=KEY):
        self.pods, self.size = list(pods), NODE_RANKS * len(pods)
        self._board, self._barrier = [None] * self.size, threading.Barrier(self.size)
        lines = [queue.Queue() for _ in range(self.size)]
        self.records = [Records() for _ in range(self.size)]
        self.folders, self.peers, self.makers = [], [], []
        for rank in range(self.size):
            place = root / self.pods[rank // NODE_RANKS]
            place.mkdir(exist_ok=True)
            member = make_member("file:///unused", rank, self.size, generation)
            self.folders.append(CopyFolder(place, key, member))
            self.peers.append(ThreadPeers(rank, self.size, self._board, self._barrier))
            reporter = StageReporter(sink=self.records[rank], generation=generation, stage="s", config_hash="0" * 16)
            belt = Belt(lines, rank, self.size) if len(self.pods) > 1 else None
            self.makers.append(CopyMaker(self.folders[rank], self.peers[rank], belt, reporter))

    def all(self, work):
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))

    def copy(self, step, proof_after=0):
        moment = Moment(
            step=step,
            captured_at=NOW,
            data_cursor={"step": step},
            samples=10 * step,
            proof_after=proof_after,
            proof=None,
        )

        def one(rank):
            told = replace(moment, proof=f"rank {rank}")
            self.makers[rank].take(FakeState(rank, self.size, seed=step), told)
            self.makers[rank].wait()

        self.all(one)

    def restore(self, seed, stored_step=0):
        states = [FakeState(rank, self.size, seed=seed) for rank in range(self.size)]

        def one(rank):
            return restore_copies(self.folders[rank], NODE_RANKS, stored_step, states[rank], self.peers[rank])

        return self.all(one), states


def lose(root, pod):
    """The memory of a pod goes with it."""
    for path in (root / pod).iterdir():
        path.unlink()


def data_files(root, pod, rank):
    return sorted((root / pod).glob(f"*-{rank:05d}-*.copy"))


@pytest.mark.parametrize("survivors", [["a", "b"], ["a", "c"], ["b", "c"]])
def test_a_world_that_lost_any_one_pod_goes_on_from_the_newest_copies_shared_out_anew(tmp_path, survivors):
    before = World(tmp_path, ["a", "b", "c"], 1)
    for step in (10, 20, 30):
        before.copy(step)
    lose(tmp_path, ({"a", "b", "c"} - set(survivors)).pop())
    found, states = World(tmp_path, survivors, 2).restore(seed=30, stored_step=15)
    assert {(r.step, r.generation, r.samples) for r in found} == {(30, 1, 300)}
    assert all(r.data_cursor == {"step": 30} for r in found)
    assert all(state.is_whole() for state in states)
    assert found[0].proof == [f"rank {rank}" for rank in range(6)]
    assert all(r.proof == [] for r in found[1:])


def test_a_larger_world_takes_its_shares_from_the_copies_of_a_smaller_one(tmp_path):
    World(tmp_path, ["a", "b"], 1).copy(10)
    found, states = World(tmp_path, ["a", "b", "new"], 2).restore(seed=10)
    assert {r.step for r in found} == {10}
    assert all(state.is_whole() for state in states)


def test_without_both_pods_that_had_a_share_the_checkpoint_is_taken(tmp_path, caplog):
    before = World(tmp_path, ["a", "b", "c"], 1)
    before.copy(10)
    lose(tmp_path, "a")
    lose(tmp_path, "b")
    found, states = World(tmp_path, ["c", "new"], 2).restore(seed=10, stored_step=4)
    assert found == [None] * 4
    assert all(state.written == {} for state in states)
    assert "copies in memory reach step 10, with 4 of 6 shares" in caplog.text


def test_a_damaged_copy_is_refused_and_the_other_one_of_its_share_taken(tmp_path, caplog):
    World(tmp_path, ["a", "b"], 1).copy(10)
    damage(data_files(tmp_path, "a", 0)[0])
    found, states = World(tmp_path, ["a", "b"], 2).restore(seed=10)
    assert {r.step for r in found} == {10}
    assert all(state.is_whole() for state in states)
    assert "does not fit its checksums; it is refused" in caplog.text


def test_damage_in_both_copies_of_a_share_leaves_the_set_before_and_then_the_checkpoint(tmp_path):
    before = World(tmp_path, ["a", "b"], 1)
    before.copy(10)
    before.copy(20)
    for path in (data_files(tmp_path, "a", 0)[1], data_files(tmp_path, "b", 0)[1]):
        damage(path)
    found, states = World(tmp_path, ["a", "b"], 2).restore(seed=10)
    assert {r.step for r in found} == {10}
    assert all(state.is_whole() for state in states)
    for path in (data_files(tmp_path, "a", 0)[0], data_files(tmp_path, "b", 0)[0]):
        damage(path)
    assert World(tmp_path, ["a", "b"], 3).restore(seed=10)[0] == [None] * 4


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_copies_that_another_key_has_signed_or_nobody_are_no_copies(tmp_path, caplog):
    World(tmp_path, ["a", "b"], 1, key=b"x" * 32).copy(10)
    (tmp_path / "a" / "s.forged.json").write_text('{"header": "{}"}')
    assert World(tmp_path, ["a", "b"], 2).restore(seed=10)[0] == [None] * 4
    assert "not signed with the run's key" in caplog.text


def test_a_copy_that_was_cut_short_spoils_neither_half_of_the_set_before(tmp_path):
    before = World(tmp_path, ["a", "b"], 1)
    before.copy(10)
    before.copy(20)

    def dies(rank):
        raise OSError("no space")

    before.makers[2]._file = lambda *_: dies(2)  # a rank of pod b has no room for the third copy
    before.copy(30)
    assert {record.task for record in before.records[2].all} == {"copies"}
    found, states = World(tmp_path, ["a", "b"], 2).restore(seed=20)
    assert {r.step for r in found} == {20}
    assert all(state.is_whole() for state in states)
    del before.makers[2]._file
    before.copy(40)  # into the half of 30, since that never was a set
    found, states = World(tmp_path, ["a", "b"], 3).restore(seed=40)
    assert {r.step for r in found} == {40}


def test_one_pod_alone_keeps_copies_for_the_death_of_its_workers(tmp_path):
    World(tmp_path, ["a"], 1).copy(10)
    found, states = World(tmp_path, ["a"], 2).restore(seed=10)
    assert {r.step for r in found} == {10}
    assert all(state.is_whole() for state in states)


def test_the_copies_of_generations_before_go_once_there_is_a_newer_set(tmp_path):
    World(tmp_path, ["a", "b"], 1).copy(10)
    world = World(tmp_path, ["a", "b"], 2)
    found, _ = world.restore(seed=10)
    for rank, maker in enumerate(world.makers):
        maker._old = list(found[rank].names)
    world.copy(20)
    assert data_files(tmp_path, "a", 0)[0].name.startswith("s.g000001")
    world.copy(30)
    assert all(path.name.startswith("s.g000002") for pod in "ab" for path in (tmp_path / pod).iterdir())


def test_what_comes_from_the_next_pod_is_verified_before_it_counts(tmp_path):
    world = World(tmp_path, ["a", "b"], 1)
    belt = world.makers[2]._neighbours
    passed = belt.pass_on

    def spoiled(header, data, into):
        return passed(header, torch.cat((data[:-1], data[-1:] ^ 1)), into)

    belt.pass_on = spoiled
    world.copy(10)
    told = [record.message for record in world.records[0].all if record.kind == "housekeeping"]
    assert "does not fit its checksums" in told[0]
    assert not list((tmp_path / "a").glob("*-00002-*.json"))
