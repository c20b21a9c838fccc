"""Units that store a table each: one table per unit, whoever is slow, gone, late or twice there."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta

import pyarrow as pa
import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.engines import claims, local
from videotrain_trainer.engines.interface import Member, Unit
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.engines.tables import FIRST, TableBoard, UnitTables, alone
from videotrain_trainer.errors import DataError

UNITS = [Unit(f"u{n}", weight=4) for n in range(4)]
NAMES = [unit.name for unit in UNITS]


@pytest.fixture
def config(make_config):
    return make_config(CurateTask(), videos="file:///nowhere")


class Tabled:
    """Work that stores a table of whoever did a unit; `during` sees each while it is done."""

    gpus = 0

    def __init__(self, store, config, by=0, during=lambda unit, tick: None, units_at_once=1) -> None:
        self.tables, self.done = UnitTables(store, f"{config.paths.output}/units"), []
        self.by, self.during, self.units_at_once, self.measured = by, during, units_at_once, {}

    def open(self, scratch):
        return self

    def do(self, unit, tick):
        self.during(unit, tick)
        self.done.append(unit.name)
        return {FIRST: self.tables.keep(unit.name, pa.table({"unit": [unit.name], "by": [self.by]}))}

    def used(self):
        return self.measured

    def close(self):
        pass


def rank_of(context, store, work, units=UNITS, phase=None):
    member = Member.of(context)
    board = TableBoard(store, member, work.tables)
    return LocalRun(member, store, work, (alone(unit) for unit in units), 1, board, phase)


def told(work, names=NAMES):
    return [fields for table in work.tables.read(names, lambda done, total: None) for fields in table.to_pylist()]


def test_each_unit_is_done_once_by_one_rank_and_its_table_is_kept(store, config, make_context):
    works = [Tabled(store, config, by=rank) for rank in range(3)]
    ranks = [rank_of(make_context(config, rank, 3), store, works[rank]) for rank in range(3)]
    ended = [None] * 3
    threads = [
        threading.Thread(target=lambda rank=rank: ended.__setitem__(rank, ranks[rank].run())) for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True] * 3
    assert sorted(name for work in works for name in work.done) == NAMES
    assert [row["unit"] for row in told(works[1])] == NAMES


def test_a_restart_does_what_has_no_table_and_tells_of_the_rest_as_done_before(store, config, make_context):
    context = make_context(config)
    work = Tabled(store, config)
    context.drain.requested = lambda: len(work.done) >= 2
    assert not rank_of(context, store, work).run()
    kept = [record.step for record in context.records.all if record.kind == "checkpoint"]
    assert kept[-1] == context.records.steps()[-1] == 4 * len(work.done) < 16
    again, rest = make_context(config, generation=2), Tabled(store, config)
    assert rank_of(again, store, rest).run()
    assert sorted(work.done + rest.done) == NAMES
    assert (again.records.all[0].resumed_step, again.records.all[0].total_steps) == (4 * len(work.done), 16)
    assert again.records.steps()[-1] == 16


def test_a_table_that_is_deleted_is_made_again(store, config, make_context):
    assert rank_of(make_context(config), store, Tabled(store, config)).run()
    store.delete(f"{config.paths.output}/units/u2.parquet")
    again = Tabled(store, config)
    assert rank_of(make_context(config, generation=2), store, again).run()
    assert again.done == ["u2"]


def test_the_step_counter_moves_while_another_rank_is_in_a_long_unit(store, config, make_context, monkeypatch):
    """Rank 1 is in a unit of which it has done three steps until rank 0 has told of them; rank 0 holds two units."""
    monkeypatch.setattr(local, "SHARE_SECONDS", 0.0)
    seen, many = threading.Event(), [Unit(f"u{n}", weight=4) for n in range(8)]
    first, second = make_context(config, 0, 2), make_context(config, 1, 2)
    first.drain.requested = lambda: 3 in first.records.steps() and seen.set()

    def slow(unit, tick):
        tick(3)
        assert seen.wait(60)

    other = rank_of(second, store, Tabled(store, config, 1, slow), many)
    thread = threading.Thread(target=other.run)
    thread.start()
    assert rank_of(first, store, Tabled(store, config, 0, lambda unit, tick: seen.wait(60)), many).run()
    thread.join()
    assert first.records.steps()[-1] == 4 * 8
    assert second.records.all == []


def test_what_workers_use_is_told_with_the_steps(store, config, make_context, monkeypatch):
    """Times are means of the ranks, and never more than has gone by: the other rank tells of its own at the end."""
    monkeypatch.setattr(local, "SHARE_SECONDS", 60.0)
    first, second = make_context(config, 0, 2), make_context(config, 1, 2)
    met = threading.Barrier(2, timeout=60)
    works = [Tabled(store, config, rank) for rank in range(2)]

    def rank(number: int) -> None:
        begun = []

        def use(unit, tick):
            if not begun:
                begun.append(met.wait())  # each has one, as a rank holds two at most
            used = works[number].measured
            for name, amount in (("waited_us", 2000), ("busy_us", 6000), ("stored_bytes", 100)):
                used[name] = used.get(name, 0) + amount

        works[number].during = use
        assert rank_of((first, second)[number], store, works[number], [Unit(f"u{n}", 1) for n in range(8)]).run()

    other = threading.Thread(target=rank, args=(1,))
    other.start()
    rank(0)
    other.join()
    steps = [record for record in first.records.all if record.kind == "step"]
    assert sum(step.stored_bytes or 0 for step in steps) == 8 * 100
    assert sum(step.data_stall_us for step in steps) <= 8 * 2000 // 2
    assert 0 < sum(step.forward_us or 0 for step in steps) <= 8 * 6000 // 2
    for step in steps:
        length = (step.finished_at - step.started_at) // timedelta(microseconds=1)
        assert step.data_stall_us + (step.forward_us or 0) <= length


def test_units_that_are_no_steps_are_told_as_a_phase(store, config, make_context):
    context = make_context(config)
    assert rank_of(context, store, Tabled(store, config), phase="merge").run()
    assert {record.kind for record in context.records.all} == {"phase"}
    last = context.records.all[-1]
    assert (last.phase, last.done, last.total) == ("merge", 16, 16)


def test_a_worker_is_in_as_many_units_at_a_time_as_it_says(store, config, make_context):
    met = threading.Barrier(2, timeout=60)
    work = Tabled(store, config, during=lambda unit, tick: met.wait(), units_at_once=2)
    assert rank_of(make_context(config), store, work).run()
    assert sorted(work.done) == NAMES


def test_a_unit_that_outlasts_the_grace_period_is_given_up_and_leaves_no_table(store, config, make_context):
    begun = threading.Event()
    context = make_context(config.model_copy(update={"grace_seconds": 0}))
    context.drain.requested = begun.is_set

    def endless(unit, tick):
        begun.set()
        while True:
            tick(0)

    work = Tabled(store, config, during=endless)
    assert not rank_of(context, store, work).run()
    assert work.tables.names() == set()


def test_a_damaged_or_missing_table_names_the_object(store, config, make_context):
    work = Tabled(store, config)
    assert rank_of(make_context(config), store, work).run()
    uri = f"{config.paths.output}/units/u2.parquet"
    for damage in (b"{", b"[]", b"\xff", store.get(uri)[:-9] + b"\x07" + store.get(uri)[-8:]):
        store.put(uri, damage)
        with pytest.raises(DataError, match=r"units/u2\.parquet: damaged.*delete it"):
            told(work)
    store.delete(uri)
    with pytest.raises(DataError, match=r"units/u2\.parquet: missing"):
        told(work)


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


def test_a_misread_table_is_read_again(store, config, make_context):
    work = Tabled(Misread(store), config)
    assert rank_of(make_context(config), Misread(store), work).run()
    assert [row["unit"] for row in told(work)] == NAMES


def test_the_progress_of_others_is_read_again_and_its_damage_names_the_object(store, config, make_context, monkeypatch):
    monkeypatch.setattr(local, "SHARE_SECONDS", 0.0)
    first, folder = make_context(config, 0, 2), f"{config.paths.output}/progress/g000001/units"
    claims.Claims(store, folder, 1, 2, 0).show_life({"beat": 1, "kept": 0, "done": 0, "parts": 3})
    sign, seen = f"{folder}/ranks/00001.json", threading.Event()
    whole = store.get(sign)
    store.put(sign, b"[3")
    with pytest.raises(DataError, match=r"ranks/00001\.json: damaged"):
        rank_of(first, store, Tabled(store, config), UNITS[:1]).run()
    store.put(sign, whole)
    # The only range is rank 1's from here on, so that what is told is what rank 1 has told.
    store.put(f"{folder}/claims/000000/00000000.0.json", sealed_json({"rank": 1}))
    first.drain.requested = lambda: 3 in first.records.steps() and seen.set()
    work = Tabled(store, config, during=lambda unit, tick: seen.wait(60))
    assert rank_of(first, Misread(store), work, UNITS[1:2]).run()
    assert first.records.steps()[-1] == 4


def test_a_claim_whose_holder_is_gone_is_taken_over_and_no_unit_has_two_tables(
    store, config, make_context, monkeypatch
):
    """Rank 1 stands still in its first unit and shows no life; it ends it when rank 0 has done all."""
    monkeypatch.setattr(claims, "LAPSE_SECONDS", 0.2)
    begun, freed, ended = threading.Event(), threading.Event(), []

    def freeze(unit, tick):
        begun.set()
        assert freed.wait(60)

    work = Tabled(store, config, 0, lambda unit, tick: begun.wait(60))
    late = Tabled(store, config, 1, freeze)
    frozen = rank_of(make_context(config, 1, 2), store, late)
    frozen._share = lambda: None
    thread = threading.Thread(target=lambda: ended.append(frozen.run()))
    thread.start()
    assert rank_of(make_context(config, 0, 2), store, work).run()
    assert sorted(work.done) == NAMES
    freed.set()
    thread.join()
    assert ended == [True]
    assert late.done != []
    assert {row["by"] for row in told(work)} == {0}


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


def test_writes_grow_with_the_units(store, tmp_path, config, make_context, monkeypatch):
    """A unit is claimed and ended, and has a table; those that follow each other are published together."""
    monkeypatch.setattr(local, "SHARE_SECONDS", 10.0**9)

    def writes(total: int) -> tuple[int, int]:
        output = config.paths.model_copy(update={"output": f"file://{tmp_path}/{total}"})
        mine, counting = config.model_copy(update={"paths": output}), Counting(store)
        many = [Unit(f"u{n:06d}", 1) for n in range(total)]
        assert rank_of(make_context(mine), counting, Tabled(counting, mine), many).run()
        return counting.asked["put"], counting.asked["put_once"]

    (some, tables), (more, all_tables) = writes(50), writes(150)
    assert (tables, all_tables) == (50, 150)
    pages = 9 - 7  # of 1, 1, 2, 4, 8, 16, 32, 64 and 128 units
    assert more - some == 2 * 100 + pages
