"""The page about the forecast is that of the newest record, and the runs are the published recipe."""

from __future__ import annotations

import json
from typing import Any

import forecast_backtest
import pytest

from videotrain_api.cost.forecast import forecast


def newest_record() -> dict[str, Any]:
    newest = max((forecast_backtest.ROOT / "benchmarks" / "results").glob("forecast-backtest-*.json"))
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def test_the_page_is_made_of_the_newest_record() -> None:
    record = newest_record()
    assert forecast_backtest.PAGE.read_text() == forecast_backtest.page(record["rows"], record["date"])


def test_recorded_step_times_are_those_of_the_report() -> None:
    run = forecast_backtest.recipe()
    assert list(forecast_backtest.step_seconds(run, None, 0).values()) == [10.16, 13.29, 53.2]


def test_a_step_of_the_last_stage_takes_more_than_five_times_as_long_as_one_of_the_first() -> None:
    first, *_, last = forecast(forecast_backtest.fivefold()).stages
    assert first.seconds_per_step and last.seconds_per_step
    assert last.seconds_per_step > 5 * first.seconds_per_step


@pytest.mark.parametrize("times", [0.0, 10.0], ids=["without failures", "with failures"])
def test_stages_that_differ_fivefold_are_foreseen_within_five_percent_at_a_tenth_of_the_bill(times: float) -> None:
    run = forecast_backtest.fivefold()
    future = forecast_backtest.lived(run, forecast_backtest.slower_alike(run), times, seed=1)
    assert future.phase == "Succeeded" and (sum(future.restarts.values()) > 10) == bool(times)
    assert [told.share for told in future.told] == [0.1, 0.25, 0.5]
    for told in future.told:
        assert told.micros == pytest.approx(future.micros, rel=0.05)
        assert told.low <= future.micros <= told.high


def test_the_record_keeps_what_the_forecast_promises() -> None:
    rows = newest_record()["rows"]
    alike = [row for row in rows if row["runs"] == forecast_backtest.ALIKE]
    assert len(alike) == 6 and all(row["largest_error"] <= 0.05 for row in alike)
    expected = [row for row in rows if row["runs"] != "drawn, deviation 0.5"]
    assert all(row["coverage"] >= 0.8 for row in expected), "four times of five, where it is as wrong as it expects"
