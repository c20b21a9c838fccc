"""The page about the forecast is that of the newest record, and the runs are the published recipe."""

from __future__ import annotations

import json

import forecast_backtest


def test_the_page_is_made_of_the_newest_record() -> None:
    newest = max((forecast_backtest.ROOT / "benchmarks" / "results").glob("forecast-backtest-*.json"))
    record = json.loads(newest.read_text())
    assert forecast_backtest.PAGE.read_text() == forecast_backtest.page(record["rows"], record["date"])


def test_recorded_step_times_are_those_of_the_report() -> None:
    run = forecast_backtest.recipe()
    assert list(forecast_backtest.step_seconds(run, None, 0).values()) == [10.16, 13.29, 53.2]
