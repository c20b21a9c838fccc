from __future__ import annotations

import threading
from collections import Counter

import pyarrow as pa
import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.errors import DataError
from videotrain_trainer.worker import claims
from videotrain_trainer.worker import shared_work as units
from videotrain_trainer.worker.shared_work import Unit, UnitRun, ranges


def row(**fields) -> pa.Table:
    """A result."""
    return pa.Table.from_pylist([fields])


def told(board: UnitRun) -> list[dict]:
    """The results of all units."""
    return [fields for table in board.results() for fields in table.to_pylist()]


UNITS = [Unit(f"u{n}", weight=4) for n in range(4)]


@pytest.fixture
def config(make_config):
    return make_config(CurateTask(), videos="file:///nowhere")


def test_each_unit_is_done_once_by_one_rank_and_its_result_is_kept(store, config, make_context):
    done, runs = [], {}

    def work(rank: int) -> None:
        runs[rank] = UnitRun(make_context(config, rank, 3), store, UNITS)
        assert runs[rank].run(lambda unit, tick: (done.append((rank, unit.name)), row(unit=unit.name))[1])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for _, name in done) == ["u0", "u1", "u2", "u3"]
    assert told(runs[1]) == [{"unit": unit.name} for unit in UNITS]


def test_progress_is_told_by_rank_0_for_the_whole_world_and_a_restart_keeps_what_is_committed(
    store, config, make_context, drain_after
):
    context = make_context(config, drain=drain_after(2))
    assert not UnitRun(context, store, UNITS).run(lambda unit, tick: row())
    kept = [record.step for record in context.records.all if record.kind == "checkpoint"]
    assert kept[-1] == context.records.steps()[-1] == 8
    again, redone = make_context(config, generation=2), []
    assert UnitRun(again, store, UNITS).run(lambda unit, tick: row(n=redone.append(unit.name)))
    assert redone == ["u2", "u3"]
    assert (again.records.all[0].resumed_step, again.records.all[0].total_steps) == (8, 16)
    assert again.records.steps() == [12, 16]


def test_the_step_counter_moves_while_another_rank_is_in_a_long_unit(store, config, make_context, monkeypatch):
    monkeypatch.setattr(units, "SHARE_SECONDS", 0.0)
    long, seen = threading.Event(), threading.Event()
    first, second = make_context(config, 0, 2), make_context(config, 1, 2)

    def slow(unit: Unit, tick) -> pa.Table:
        tick(3)
        long.set()
        assert seen.wait(30)
        return row()

    other = threading.Thread(target=lambda: UnitRun(second, store, UNITS[:2]).run(slow))
    other.start()
    assert long.wait(30)

    class Watching:
        def requested(self) -> bool:
            if first.records.steps()[-1:] == [4 + 3]:
                seen.set()
            return False

    object.__setattr__(first, "drain", Watching())
    assert UnitRun(first, store, UNITS[:2]).run(lambda unit, tick: row())
    other.join()
    assert first.records.steps()[-2:] == [7, 8]
    assert second.records.all == []


def test_a_unit_that_outlasts_the_grace_period_is_given_up_and_leaves_no_result(
    store, config, make_context, drain_after, monkeypatch
):
    impatient = config.model_copy(update={"grace_seconds": 0})
    context = make_context(impatient, drain=drain_after(1))

    def endless(unit: Unit, tick) -> pa.Table:
        while True:
            tick(0)

    assert not UnitRun(context, store, UNITS).run(endless)
    assert store.list(f"{config.paths.output}/units") == []


def test_it_is_told_that_results_are_read_since_no_step_is_made_meanwhile(store, config, make_context):
    context = make_context(config)
    run = UnitRun(context, store, UNITS)
    run.run(lambda unit, tick: row(unit=unit.name))
    assert len(list(run.results())) == len(UNITS)
    last = context.records.all[-1]
    assert (last.kind, last.phase, last.done, last.total) == ("phase", "merge", len(UNITS), len(UNITS))


def test_a_damaged_result_names_the_object(store, config, make_context):
    run = UnitRun(make_context(config), store, UNITS)
    run.run(lambda unit, tick: row(clips=3))
    uri = f"{config.paths.output}/units/u2.parquet"
    for damage in (b"{", b"[]", b"\xff", store.get(uri)[:-9] + b"\x07" + store.get(uri)[-8:]):
        store.put(uri, damage)
        with pytest.raises(DataError, match=r"units/u2\.parquet: damaged.*delete it"):
            list(run.results())
    store.delete(uri)
    with pytest.raises(DataError, match=r"units/u2\.parquet: missing"):
        list(run.results())


class Misread:
    """A store whose first reading of each object has one wrong byte."""

    def __init__(self, store) -> None:
        self._store, self._seen = store, set()

    def get(self, uri: str) -> bytes:
        data = self._store.get(uri)
        first = uri not in self._seen
        self._seen.add(uri)
        return data[:-2] + b"\x00" + data[-1:] if first else data

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def test_a_misread_result_is_read_again(store, config, make_context):
    run = UnitRun(make_context(config), Misread(store), UNITS)
    run.run(lambda unit, tick: row(unit=unit.name))
    assert told(run) == [{"unit": unit.name} for unit in UNITS]


def test_the_progress_of_others_is_read_again_and_its_damage_names_the_object(store, config, make_context, monkeypatch):
    monkeypatch.setattr(units, "SHARE_SECONDS", 0.0)

    def leave_after_three_steps(unit: Unit, tick) -> pa.Table:
        tick(3)
        raise units.Interrupted

    def whole(unit: Unit, tick) -> pa.Table:
        tick(1)
        return row()

    assert not UnitRun(make_context(config, 1, 2), store, UNITS[:2]).run(leave_after_three_steps)
    part = store.list(f"{config.paths.output}/progress/g000001/units/ranks")[0].uri
    whole_part = store.get(part)
    store.put(part, b"[3")
    with pytest.raises(DataError, match=r"ranks/00001\.json: damaged"):
        UnitRun(make_context(config, 0, 2), store, UNITS[2:3]).run(whole)
    store.put(part, whole_part)
    first = make_context(config, 0, 2)
    for found in store.list(f"{config.paths.output}/progress/g000001/units/claims"):
        store.delete(found.uri)
    assert UnitRun(first, Misread(store), UNITS[:1]).run(whole)
    assert first.records.steps()[0] == 1 + 3


def test_a_rank_does_what_slower_ones_have_not_begun(store, config, make_context):
    """Rank 1 sits in its first unit until rank 0 has done all others."""
    units_of_stage = [Unit(f"n{n:02d}", 1) for n in range(24)]
    free, done = threading.Event(), {0: [], 1: []}

    def slow(unit: Unit, tick) -> pa.Table:
        assert free.wait(60)
        done[1].append(unit.name)
        return row()

    def fast(unit: Unit, tick) -> pa.Table:
        done[0].append(unit.name)
        return row()

    class Watching:
        def requested(self) -> bool:
            # All ranges but the one of six units that rank 1 holds.
            if len(done[0]) == len(units_of_stage) - len(ranges(24, 2)[1]):
                free.set()
            return False

    first = make_context(config, 0, 2)
    object.__setattr__(first, "drain", Watching())
    second = UnitRun(make_context(config, 1, 2), store, units_of_stage)
    other = threading.Thread(target=lambda: second.run(slow))
    other.start()
    while not store.list(f"{config.paths.output}/progress/g000001/units/claims"):
        pass
    assert UnitRun(first, store, units_of_stage).run(fast)
    other.join()
    assert sorted(done[0] + done[1]) == [unit.name for unit in units_of_stage]
    assert len(done[1]) == len(ranges(24, 2)[1])


def test_a_claim_whose_holder_is_gone_is_taken_over_and_no_unit_has_two_results(
    store, config, make_context, monkeypatch
):
    monkeypatch.setattr(claims, "LAPSE_SECONDS", 0.3)
    gone = UnitRun(make_context(config, 1, 2), store, UNITS)

    class Killed(BaseException):
        pass

    def die(unit: Unit, tick) -> pa.Table:
        raise Killed

    with pytest.raises(Killed):
        gone.run(die)
    first, redone = make_context(config, 0, 2), []
    board = UnitRun(first, store, UNITS)
    assert board.run(lambda unit, tick: (redone.append(unit.name), row(by=0))[1])
    assert sorted(redone) == [unit.name for unit in UNITS]
    late = UnitRun(make_context(config, 1, 2), store, UNITS)
    late._keep(UNITS[0], row(by=1))  # it was not gone after all
    assert told(board) == [{"by": 0}] * len(UNITS)


class Counting:
    """A store that counts requests by kind."""

    def __init__(self, store) -> None:
        self._store, self.asked = store, Counter()

    def __getattr__(self, name: str):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def counted(*arguments, **named):
            self.asked[name] += 1
            return found(*arguments, **named)

        return counted


@pytest.mark.parametrize("size", [1, 3])
def test_requests_grow_with_the_units_and_listings_do_not(store, tmp_path, config, make_context, size):
    def requests(total: int) -> Counter:
        output = config.paths.model_copy(update={"output": f"file://{tmp_path}/{total}"})
        mine, counting = config.model_copy(update={"paths": output}), Counting(store)
        many = [Unit(f"u{n:06d}", 1) for n in range(total)]
        for rank in range(size):  # one after another: the first does what the others would have done
            context = make_context(mine, rank, size)
            assert UnitRun(context, counting, many).run(lambda unit, tick: row()) or rank < size - 1
        return counting.asked

    some, more = requests(200), requests(800)
    assert more.total() <= 4 * some.total()
    assert more["list"] <= some["list"] + 12  # the logarithm of the units, not their number
    assert more["put_once"] == 800
