"""`videotrain simulate`: what it prints of futures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.planner_builders import manifest, train_stage

from videotrain.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    body = manifest(stages=[train_stage("train", 4000)], nodes={"min": 2, "max": 2})
    del body["metadata"]["uid"], body["metadata"]["generation"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(body))
    return str(path)


def told(capsys: Capture, *words: str) -> dict[str, Any]:
    assert main(["simulate", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_futures_are_summed_and_repeat(capsys: Capture, run_file: str) -> None:
    words = (run_file, "--gpus", "8", "--days", "1", "--failures", "20000", "--runs", "3")
    words += ("--seconds-per-step", "train=2", "--repair-hours", "0.2", "--save-seconds", "5", "--start-seconds", "20")
    first, second = (told(capsys, *words) for _ in range(2))
    for document in (first, second):
        assert document.pop("cpuSeconds") >= 0 and document.pop("peakMebibytes") > 0
    assert first == second
    assert (first["futures"], first["phases"]) == (3, {"Succeeded": 3})
    assert sum(first["costByBucket"].values()) == pytest.approx(first["cost"]["mean"])
    assert first["interruptions"]["mean"] > 0 and first["goodput"]["p10"] <= first["goodput"]["p90"] < 1
    assert [row["share"] for row in first["forecast"]] == [0.1, 0.25, 0.5]
    other = told(capsys, *words, "--seed", "7")
    assert other["cost"] != first["cost"]


def test_a_page_and_a_sweep(capsys: Capture, run_file: str, tmp_path: Path) -> None:
    trace, page = tmp_path / "trace.csv", tmp_path / "out.html"
    trace.write_text("hours,node,kind\n" + "".join(f"{0.3 * n},0,hang\n" for n in range(1, 6)))
    words = [run_file, "--gpus", "8", "--days", "1", "--failures", str(trace), "--seconds-per-step", "train=2"]
    words += ["--save-seconds", "5", "--page", str(page)]
    for every in (20, 60, 180):
        words += ["--interval", str(every)]
    assert main(["simulate", *words]) == 0
    shown = capsys.readouterr().out
    assert "best by Young and Daly every" in shown and "best by the sweep" in shown and "every 180 steps" in shown
    text = page.read_text()
    assert "Wasted, by steps between checkpoints" in text and 'id="chart-3"' in text
    assert "http://" not in text.split("<script")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpus", "1"), "a node of spec.pool has 2"),
        (("--gpus", "8", "--failures", "often"), "allowed: llama3"),
        (("--gpus", "8", "--failures", "-1"), "0 or more interruptions"),
        (("--gpus", "8", "--seconds-per-step", "other=1"), "no such stage"),
    ],
)
def test_what_is_wrong_is_named(capsys: Capture, run_file: str, words: tuple[str, ...], said: str) -> None:
    assert main(["simulate", run_file, "--days", "1", *words]) == 2
    assert said in capsys.readouterr().err
