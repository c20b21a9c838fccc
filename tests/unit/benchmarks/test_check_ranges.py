"""Bounds on speed and size: which rows there are, when one fails, and what is said then."""

from __future__ import annotations

import configparser
import json

import check_ranges
import pytest
from pydantic import ValidationError
from range_measures import MEASURES, PlannerPass

from videotrain_operator.planner.draft import Draft

ROWS = check_ranges.read_ranges()
FAST = [name for name, row in ROWS.items() if not row.slow]


def measured(**ratios: float | list[float]) -> dict:
    """Measures that tell given ratios, one after another."""
    lists = {name: iter(ratio if isinstance(ratio, list) else [ratio] * 3) for name, ratio in ratios.items()}
    return {name: lambda told=told: next(told) for name, told in lists.items()}


def inside(row: check_ranges.Row) -> float:
    return row.mean


def outside(row: check_ranges.Row) -> float:
    return row.bound * 1.01 if row.better == "lower" else row.bound * 0.99


def test_every_row_is_measured_and_every_measure_has_a_row():
    assert ROWS.keys() == MEASURES.keys()


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_a_margin_holds_the_noise_and_not_much_more(row: check_ranges.Row):
    assert row.spread <= row.mean * row.margin
    assert row.margin <= 0.75
    assert row.taken.versions


def test_the_largest_run_is_planned_in_less_than_six_times_the_json_of_its_status():
    assert ROWS["planner-1024-p99"].bound <= 6


def test_plain_tox_checks_the_fast_rows():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(check_ranges.RANGES.parents[1] / "tox.ini")
    assert "perf" in tox["tox"]["env_list"].replace(" ", "").split(",")
    assert tox["testenv:perf"]["commands"] == "python benchmarks/check_ranges.py {posargs}"


def test_all_rows_inside_is_success(capsys):
    assert check_ranges.main([], measured(**{name: inside(ROWS[name]) for name in FAST})) == 0
    said = capsys.readouterr()
    assert "OUTSIDE" not in said.out and said.err == ""
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == FAST


@pytest.mark.parametrize("name", list(ROWS))
def test_one_row_outside_fails_and_says_what_to_do(name, capsys):
    row = ROWS[name]
    assert check_ranges.main([name], measured(**{name: outside(row)})) == 1
    said = capsys.readouterr()
    assert "OUTSIDE" in said.out
    for part in (name, row.unit, row.peer, row.remedy, f"--take {row.runs} {name}"):
        assert part in said.err


def test_a_disturbed_measurement_is_repeated(capsys):
    row = ROWS["order-step"]
    assert check_ranges.main(["order-step"], measured(**{"order-step": [outside(row), inside(row)]})) == 0
    assert f"{row.mean:.3f}" in capsys.readouterr().out


def test_slow_rows_are_measured_only_when_they_are_asked_for():
    assert set(check_ranges.chosen(ROWS, [], slow=False)) == set(FAST)
    assert set(check_ranges.chosen(ROWS, [], slow=True)) == set(ROWS)
    assert check_ranges.chosen(ROWS, ["recovery", "planner-8-*"], slow=False) == [
        "recovery",
        "planner-8-p50",
        "planner-8-p99",
    ]


def test_a_row_that_does_not_exist_is_refused(capsys):
    assert check_ranges.main(["planner-9"], {}) == 2
    assert "no such row: planner-9; ranges.yaml has planner-8-p50" in capsys.readouterr().err


def test_results_can_be_read_by_programs(capsys):
    check_ranges.main(["order-step", "--json"], measured(**{"order-step": 1.0}))
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["row"], result["measured"], result["holds"]) == ("order-step", 1.0, True)


def test_unknown_keys_of_a_row_are_refused(tmp_path):
    text = check_ranges.RANGES.read_text().replace("margin:", "maargin:", 1)
    (tmp_path / "ranges.yaml").write_text(text)
    with pytest.raises(ValidationError, match="maargin"):
        check_ranges.read_ranges(tmp_path / "ranges.yaml")


@pytest.fixture
def a_loop_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault for which the planner's rows were made: the world sizes are listed anew for every pod."""

    def sizes(draft):
        bounds = draft.bounds()
        return [number for number in range(bounds.min, bounds.max + 1) if bounds.min <= number <= bounds.max]

    def in_bounds(draft, pods):
        return [pod for pod in pods if sizes(draft) and pod.index < sizes(draft)[-1]]

    monkeypatch.setattr(Draft, "in_bounds", in_bounds)


@pytest.mark.usefixtures("a_loop_in_a_loop")
def test_the_planners_row_sees_a_loop_in_a_loop(monkeypatch):
    monkeypatch.setattr("range_measures.PASSES", 10)
    assert PlannerPass(1024).ratio(50) > 2 * ROWS["planner-1024-p50"].bound
