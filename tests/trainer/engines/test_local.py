"""The local engine: every unit has one result, whoever is slow, killed, late or twice there."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.engines import claims, progress
from videotrain_trainer.engines.interface import Member, Unit, cut_ranges
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.errors import DataError, StorageUnavailable


@pytest.fixture
def config(make_config):
    return make_config(CurateTask(), videos="file:///nowhere")


def units(count: int, weight: int = 1) -> list[Unit]:
    return [Unit(f"u{n:04d}", weight, {"n": n}) for n in range(count)]


class Tally:
    """Work that counts how often each unit was done; `during` sees each while it is done."""

    gpus = 0

    def __init__(self, during=None, units_at_once=1) -> None:
        self.done, self.during, self.closed, self.units_at_once = Counter(), during, 0, units_at_once

    def open(self, scratch):
        return self

    def do(self, unit, tick):
        if self.during is not None:
            self.during(unit, tick)
        self.done[unit.name] += 1
        return {"n": unit.facts["n"]}

    def used(self):
        return {}

    def close(self):
        self.closed += 1


def rank_of(context, store, work, found, threads=2):
    return LocalRun(Member.of(context), store, work, iter(cut_ranges(found)), threads)


def later(context):
    """Of the next generation."""
    return replace(context, generation=context.generation + 1)


def results(run):
    return [result["n"] for result in run.board.results(run.names())]


def test_every_unit_is_done_once_by_some_rank_and_results_come_in_the_order_of_the_listing(store, config, make_context):
    work, runs = Tally(), {}

    def rank(number: int) -> None:
        runs[number] = rank_of(make_context(config, number, 3), store, work, units(300))
        assert runs[number].run()

    in_threads(rank, 3)
    assert work.done == Counter(unit.name for unit in units(300))
    assert results(runs[0]) == list(range(300))
    assert work.closed == 6


def in_threads(rank, size: int) -> None:
    failed = []

    def run(number: int) -> None:
        try:
            rank(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_a_fast_rank_does_what_a_slow_one_has_not_begun(store, config, make_context):
    """Rank 1 is in its first unit until rank 0 has done all others, among them those of rank 1's share."""
    begun, freed = threading.Event(), threading.Event()
    found = units(400)

    def stand_still(unit, tick):
        begun.set()
        assert freed.wait(60)

    slow, fast = Tally(stand_still), Tally(lambda unit, tick: begun.wait(60))

    def rank(number: int) -> None:
        if number == 1:
            assert rank_of(make_context(config, 1, 2), store, slow, found, threads=1).run()
            return
        run = rank_of(make_context(config, 0, 2), store, fast, found)
        fast.during = lambda unit, tick: begun.wait(60) and (len(fast.done) < 300 or freed.set())
        assert run.run()

    in_threads(rank, 2)
    assert sum((slow.done + fast.done).values()) == 400
    assert set((slow.done + fast.done).values()) == {1}
    assert len(slow.done) <= 64 * 2


def test_what_a_lost_rank_had_claimed_is_taken_over_and_its_late_results_change_nothing(
    store, config, make_context, monkeypatch
):
    monkeypatch.setattr(claims, "LAPSE_SECONDS", 0.2)
    begun, freed = threading.Event(), threading.Event()

    def freeze(unit, tick):
        begun.set()
        assert freed.wait(60)

    lost, alive = Tally(freeze), Tally(lambda unit, tick: begun.wait(60))
    found, finished = units(200), []

    def rank(number: int) -> None:
        if number == 1:
            frozen = rank_of(make_context(config, 1, 2), store, lost, found, threads=1)
            frozen._share = lambda: None  # shows no life
            finished.append(frozen.run())
        else:
            run = rank_of(make_context(config, 0, 2), store, alive, found)
            finished.append(run.run())
            assert results(run) == list(range(200))
            freed.set()

    in_threads(rank, 2)
    assert finished == [True, True]
    assert set(alive.done) == {unit.name for unit in found}


def test_a_world_that_leaves_keeps_what_is_done_and_another_of_any_size_does_the_rest(
    store, config, make_context, drain_after
):
    context = make_context(config, drain=drain_after(10**9))
    work = Tally(lambda unit, tick: setattr(context.drain, "after", 0) if len(work.done) == 70 else None)
    assert not rank_of(context, store, work, units(200)).run()
    told = [record for record in context.records.all if record.kind == "checkpoint"]
    assert told[-1].step == len(work.done) == sum(work.done.values()) < 200
    again, second, rest = later(make_context(config, 0, 2)), later(make_context(config, 1, 2)), Tally()
    runs = {}

    def rank(number: int) -> None:
        runs[number] = rank_of((again, second)[number], store, rest, units(200))
        assert runs[number].run()

    in_threads(rank, 2)
    assert work.done + rest.done == Counter(unit.name for unit in units(200))
    started = again.records.all[0]
    assert (started.kind, started.resumed_step, started.total_steps) == ("started", len(work.done), 200)
    assert again.records.steps()[-1] == 200
    assert results(runs[0]) == list(range(200))


def test_the_end_is_told_whole_although_others_have_told_of_none_of_their_units(store, config, make_context):
    first, second = make_context(config, 0, 2), make_context(config, 1, 2)
    begun = threading.Event()

    def rank(number: int) -> None:
        work = Tally(lambda unit, tick: begun.set() if number else begun.wait(60))
        run = rank_of((first, second)[number], store, work, units(200))
        if number == 1:
            run._share = lambda: None
        assert run.run()

    in_threads(rank, 2)
    assert first.records.steps()[-1] == 200


def test_units_that_are_added_or_gone_change_their_own_range_only(store, config, make_context):
    first = Tally()
    assert rank_of(make_context(config), store, first, units(300)).run()
    changed, again = [*units(150), Unit("u0149b", 1, {"n": -1}), *units(300)[150:]], Tally()
    context = later(make_context(config))
    run = rank_of(context, store, again, changed)
    assert run.run()
    assert "u0149b" in again.done
    assert len(again.done) <= 65
    assert results(run) == [*range(150), -1, *range(150, 300)]


def test_a_unit_that_outlasts_the_grace_period_is_given_up(store, config, make_context, drain_after):
    def endless(unit, tick):
        while True:
            tick(0)

    impatient = config.model_copy(update={"grace_seconds": 0})
    work = Tally(endless)
    assert not rank_of(make_context(impatient, drain=drain_after(20)), store, work, units(4)).run()
    assert not work.done
    assert store.list(f"{config.paths.output}/units") == []


def test_an_error_of_a_unit_and_one_of_the_listing_end_the_run(store, config, make_context):
    def fail(unit, tick):
        raise DataError("no such clip")

    with pytest.raises(DataError, match="no such clip"):
        rank_of(make_context(config), store, Tally(fail), units(100)).run()

    def torn():
        yield from units(3)
        raise StorageUnavailable("gone")

    with pytest.raises(StorageUnavailable, match="gone"):
        rank_of(make_context(config), store, Tally(), torn()).run()


def test_the_first_unit_is_done_before_the_listing_has_ended(store, config, make_context, monkeypatch):
    monkeypatch.setattr(progress, "LISTING_SECONDS", 0.0)
    done = threading.Event()

    def found():
        yield from units(64, weight=2)
        assert done.wait(60)
        yield from [Unit(f"v{n}", 2, {"n": 64 + n}) for n in range(6)]

    context = make_context(config)
    assert rank_of(context, store, Tally(lambda unit, tick: done.set()), found()).run()
    kinds = {record.phase: record.total for record in context.records.all if record.kind == "phase"}
    assert kinds["list"] == 140
    assert context.records.steps()[-1] == 140


def test_requests_grow_as_the_ranges_do(storage, config, make_context, store, tmp_path):
    """Twice the units, twice the requests, whatever they are: nobody asks for all of them again and again."""
    counts = {}
    for number in (1000, 2000, 4000):
        place = config.model_copy(
            update={"paths": config.paths.model_copy(update={"output": (tmp_path / f"out-{number}").as_uri()})}
        )
        counted = Counting(store)
        assert rank_of(make_context(place), counted, Tally(), units(number)).run()
        counts[number] = counted.requests
    assert counts[1000] < 1000
    assert counts[4000] - counts[2000] <= 1.3 * 2 * (counts[2000] - counts[1000])


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store) -> None:
        self._store, self.requests = store, 0

    def __getattr__(self, name: str):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def ask(*arguments, **named):
            self.requests += 1
            return found(*arguments, **named)

        return ask
