"""Where the time of steps went, from the workers' records to the summary and the page."""

import json

import pytest

from videotrain.report import write_report
from videotrain.report.speed import stage_speed
from videotrain.report.summary import write_summary
from videotrain.report.workdir import read_records


def measured(step):
    """Half a second of each step is told; rank 3 is slow in two steps of three."""
    return {
        "dataStallUs": 50_000,
        "forwardUs": 100_000,
        "backwardUs": 200_000,
        "communicationUs": 40_000,
        "optimizerUs": 10_000,
        "hardwareFlops": 1.3e9,
        "usefulFlops": 0.6e9,
        "memoryBytes": 120_000_000_000 + step,
        "slowestRank": 3 if step % 3 else 0,
        "stragglerRatio": 0.2 if step % 3 else 0.1,
    }


@pytest.fixture
def told(synthetic):
    stage = synthetic.stage("train", "train", 9)
    synthetic.generation(stage, "Started", [0, 1], 1, 9, measured=measured)
    return synthetic


def test_the_time_of_kept_steps_is_told_by_part_and_adds_up(told):
    speed = stage_speed("train", read_records(told.workdir))
    seconds = speed["seconds"]
    assert {part: round(value, 6) for part, value in seconds.items()} == {
        "data": 0.45,
        "forward": 0.9,
        "backward": 1.8,
        "communication": 0.36,
        "optimizer": 0.09,
        "checkpoint": 0,
        "rest": 0.9,
    }
    assert sum(seconds.values()) == pytest.approx(9 * 0.5)
    assert speed["hardware_flops"] / speed["model_flops"] == pytest.approx(1.3)
    assert speed["useful_flops"] / speed["model_flops"] == pytest.approx(0.6)
    assert speed["memory_bytes"] == 120_000_000_009


def test_ranks_that_are_slowest_are_listed_with_how_often_and_how_much(told):
    found = stage_speed("train", read_records(told.workdir))["slowest"]
    assert [(one["rank"], one["steps"], one["share"], one["ratio"]) for one in found] == [
        (3, 6, 0.6667, 0.2),
        (0, 3, 0.3333, 0.1),
    ]


def test_of_an_encode_stage_clips_and_bytes_are_told_and_what_the_device_did(synthetic):
    """Steps of half a second, of which the first tells of nothing yet."""
    stage = synthetic.stage("encode", "encode", 8)
    used = {"dataStallUs": 100_000, "forwardUs": 300_000, "storedBytes": 8_000_000}
    synthetic.generation(stage, "StageStarted", [0], 1, 8, measured=lambda step: used if step > 1 else {})
    records = read_records(synthetic.workdir)
    speed = stage_speed("encode", records)
    clips = sum(step.samples for step in records.kept_steps("encode"))
    assert speed["encoded"] == {
        "clips": clips,
        "clips_per_second": pytest.approx(clips / 4),
        "bytes_per_clip": pytest.approx(7 * 8_000_000 / clips),
    }
    assert (speed["seconds"]["data"], speed["seconds"]["forward"]) == (pytest.approx(0.7), pytest.approx(2.1))
    write_summary(synthetic.workdir, synthetic.run(), synthetic.objects)
    page = write_report(synthetic.workdir, synthetic.run()).read_text()
    section = page[page.index("Where the time of a step went") :]
    for shown in ("clips per second", "device busy", "52.5 %", "17.5 %"):
        assert shown in section[: section.index("</section>")], shown


def test_summary_and_page_show_it_and_do_without_where_nobody_measured(told, synthetic):
    other = synthetic.stage("encode", "encode", 3)
    synthetic.generation(other, "StageStarted", [0], 1, 3)
    path = write_summary(synthetic.workdir, synthetic.run(), synthetic.objects)
    stages = {stage["name"]: stage["speed"] for stage in json.loads(path.read_text())["stages"]}
    assert stages["encode"] is None
    assert stages["train"]["steps"] == 9
    page = write_report(synthetic.workdir, synthetic.run()).read_text()
    section = page[page.index("Where the time of a step went") :]
    section = section[: section.index("</section>")]
    for shown in ("exposed communication", "40.0 %", "8.0 %", "130 %", "60 %", "120GB", "67 %", "+20 %"):
        assert shown in section, shown
    assert "encode" not in section
