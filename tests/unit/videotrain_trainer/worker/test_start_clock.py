"""Phases of a start follow each other without a gap."""

from datetime import UTC, datetime, timedelta

from videotrain_trainer.worker.start_clock import StartClock

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def test_each_phase_lasts_from_the_one_before():
    clock = StartClock(START)
    clock.passed("order", at(1))
    clock.passed("launch", at(1.5))
    clock.passed("order", at(2))
    assert clock.phases_us == {"order": 1_500_000, "launch": 500_000}
    assert str(clock) == "order 1.50 s, launch 0.50 s"


def test_a_clock_that_is_behind_makes_a_phase_empty_and_none_negative():
    clock = StartClock(at(5))
    clock.passed("order", at(1))
    clock.passed("launch", at(6))
    assert clock.phases_us == {"order": 0, "launch": 1_000_000}
