"""Pictures and tables of the documentation show what the code does and what was measured."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "benchmarks" / "figures" / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def story():
    return load("elasticity_story.py")


@pytest.fixture(scope="module")
def told(story):
    return json.loads(json.dumps(story.tell()))


def test_the_record_behind_the_picture_is_what_the_planner_decides_now(story, told) -> None:
    stored = json.loads(story.RECORD.read_text())
    assert told == stored, "run benchmarks/figures/elasticity_story.py and elasticity_timeline.py, and read on"


def test_the_page_tells_what_the_events_told(story, told) -> None:
    text = story.PAGE.read_text()
    assert story.page_with(text, told) == text, "run benchmarks/figures/elasticity_story.py"
    assert "`Hang`" in story.table(told)


def test_the_scenario_shows_what_the_page_says_of_it(told) -> None:
    reasons = [item["reason"] for item in told["generations"]]
    assert reasons == ["Started", "Grow", "NodeLost", "Grow", "Preempted", "Hang"]
    saved = {second for second, _ in told["saved"]}
    grown = [item["from"] for item in told["generations"] if item["reason"] == "Grow"]
    assert set(grown) <= saved, "it grows when a checkpoint is complete"
    back = next(pod for pod in told["pods"] if pod["pieces"][0]["from"] > 570)
    assert back["pieces"][0]["bucket"] == "idle", "growing would not pay any more"
    assert told["restarts"] == {"application": 0, "infrastructure": 1, "preemption": 1, "hang": 1}


LINE = {
    "benchmark": "operator_scale",
    "scenario": "burst",
    "at": "2026-01-01T00:00:00+00:00",
    "runs": 20,
    "pods": 8,
    "nodes": 40,
    "profile": "raised",
    "peer": "videotrain",
    "result": {
        "allPodsExistSeconds": 1.5,
        "trainingCanBeginSeconds": 2.5,
        "cpuUntilBegin": {"cluster": 0.3, "operator": 0.05},
        "operatorMemory": {"rssMiB": 90.0, "peakRssMiB": 100.0},
    },
    "beside": {"jobset": {"trainingCanBeginSeconds": 0.7, "clusterCpuUntilBegin": 0.9}},
    "machine": {"cores": 2, "cpu": "X", "memoryGiB": 24},
    "versions": {"kubernetes": "1.37.1", "python": "3.11.7", "videotrain-operator": "0.1.0"},
}


def write(folder: Path, *lines: dict) -> None:
    (folder / "operator_scale-x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_measured_tables_are_those_of_the_stored_results() -> None:
    tables = load("operator_scale_tables.py")
    for page in tables.PAGES:
        assert tables.filled(page.read_text(), tables.newest()) == page.read_text(), (
            f"run benchmarks/figures/operator_scale_tables.py: {page.name} does not show the stored results"
        )


def test_the_newest_sound_result_counts(tmp_path) -> None:
    tables = load("operator_scale_tables.py")
    newer = LINE | {
        "at": "2026-01-02T00:00:00+00:00",
        "versions": LINE["versions"] | {"commit": "newer"},
        "result": LINE["result"] | {"allPodsExistSeconds": 1.25},
    }
    failed = {key: value for key, value in LINE.items() if key != "result"} | {"at": "2026-01-03", "error": "late"}
    write(tmp_path, newer, LINE, failed)
    lines = tables.newest(tmp_path)
    assert tables.load(lines).splitlines()[-1] == (
        "| videotrain | 20 x 8 | 40 | raised | 1 | 1.25 | 2.5 | 0.05 | 0.3 | 0.7; 0.9 |  | 100 |"
    )
    assert tables.faults(lines) == tables.NONE


def test_rounds_of_one_commit_are_told_as_median_and_range(tmp_path) -> None:
    tables = load("operator_scale_tables.py")
    rounds = [
        LINE | {"at": f"2026-01-0{day}", "beside": {"jobset": {"trainingCanBeginSeconds": ratio}}}
        for day, ratio in ((1, 0.9), (2, 1.4), (3, 1.0))
    ]
    write(tmp_path, *rounds)
    assert "| 3 | 1.5 (1.5-1.5) |" in tables.load(tables.newest(tmp_path))
    assert "| 1 (0.9-1.4) |" in tables.load(tables.newest(tmp_path))


def test_memory_is_a_line_through_two_sizes(tmp_path) -> None:
    tables = load("operator_scale_tables.py")
    large = LINE | {"runs": 120, "result": LINE["result"] | {"operatorMemory": {"peakRssMiB": 150.0}}}
    write(tmp_path, LINE, large)
    assert "90 MiB + 64.0 KiB x pods" in tables.memory(tables.newest(tmp_path))
