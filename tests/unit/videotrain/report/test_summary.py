import hashlib
import json
import random
from decimal import Decimal

import pytest

from videotrain.report.summary import write_summary
from videotrain.wording import GPU_NOTE


def summary_of(run):
    return json.loads(write_summary(run.workdir, run.run(), run.objects).read_text())


def stage_of(summary, name):
    return next(s for s in summary["stages"] if s["name"] == name)


def test_the_summary_holds_everything_that_is_promised(finished):
    summary = summary_of(finished)
    promised = "stages restarts samples gpu_seconds cost recovery_seconds checkpoints videos"
    assert set(promised.split()) <= set(summary)
    assert summary["note"] == GPU_NOTE
    assert (summary["phase"], summary["duration_seconds"]) == ("Succeeded", 107.5)


def test_generations_tell_size_reason_and_steps(finished):
    generations = stage_of(summary_of(finished), "train-64px")["generations"]
    keys = ("number", "world_size", "reason", "first_step", "last_step", "lost_steps", "end_cause")
    assert [tuple(g[k] for k in keys) for g in generations] == [
        (3, 4, "StageStarted", 1, 47, 7, "infrastructure"),
        (4, 2, "NodeLost", 41, 80, 0, "drained"),
        (5, 4, "Grow", 81, 120, 0, "completed"),
    ]


def test_losses_are_those_of_the_kept_steps(synthetic):
    stage = synthetic.stage("train", "train", 20)
    synthetic.generation(stage, "Started", [0], 1, 12, cause="infrastructure", lost_from=10, loss=lambda step: 1000.0)
    synthetic.generation(stage, "NodeLost", [0], 11, 20, loss=float)
    found = stage_of(summary_of(synthetic), "train")
    assert (found["first_tenth_loss"], found["last_tenth_loss"], found["final_loss"]) == (1000.0, 19.5, 20.0)
    assert (found["steps"], found["samples"]) == (20, 80)


def test_a_stage_without_a_loss_has_none(finished):
    found = stage_of(summary_of(finished), "encode")
    assert found["final_loss"] is found["first_tenth_loss"] is found["last_tenth_loss"] is None


def test_buckets_sum_to_the_held_time_exactly(finished):
    text = write_summary(finished.workdir, finished.run(), finished.objects).read_text()
    seconds = json.loads(text, parse_float=Decimal)["gpu_seconds"]
    held = seconds.pop("held")
    assert sum(Decimal(value) for value in seconds.values()) == held == Decimal("176.469136")
    micros = json.loads(text)["gpu_microseconds"]
    assert micros.pop("held") == sum(micros.values()) == 176_469_136
    cost = json.loads(text)["cost"]
    assert sum(cost["by_bucket"].values()) == cost["total_micros"]


@pytest.mark.parametrize("micros", [1, 999_999, 1_000_001, 123_456_789_012_345])
def test_seconds_keep_every_microsecond(synthetic, micros):
    synthetic.buckets = {"productive": micros}
    text = write_summary(synthetic.workdir, synthetic.run(), synthetic.objects).read_text()
    assert json.loads(text, parse_float=Decimal)["gpu_seconds"]["held"] * 1_000_000 == micros


def test_samples_are_proved_per_stage_and_together(finished):
    samples = summary_of(finished)["samples"]
    (stage,) = samples["stages"]
    assert (samples["consumed"], samples["repeated"], samples["lost"], samples["problems"]) == (480, 0, 0, [])
    combined = hashlib.sha256(f"train-64px {stage['order_sha256']}\n".encode()).hexdigest()
    assert samples["order_sha256"] == combined


def test_a_checkpoint_that_is_gone_is_reported(finished):
    del finished.objects.objects[f"{finished.prefix('train-64px')}/checkpoints/step-00000120/commit.json"]
    samples = summary_of(finished)["samples"]
    assert samples["consumed"] == 0
    assert "no proof of the order" in samples["problems"][0]


def test_recovery_runs_from_the_first_failure_to_the_first_step_of_the_next_world(finished):
    summary = summary_of(finished)
    (recovery,) = summary["recoveries"]
    # Without an exit record the last finished step is the last sign of life: 1 s to the roster, 3 s start, 0.8 s step.
    assert summary["recovery_seconds"] == [4.8]
    assert (recovery["cause"], recovery["lost_steps"]) == ("infrastructure", 7)
    assert sum(recovery["phases"].values()) == pytest.approx(4.8)
    assert recovery["gpu_seconds"] == pytest.approx(4.8 * 2 + 3.5 * 4)


def test_a_failed_worker_tells_when_the_failure_was(finished):
    finished.number = 3
    end = {"kind": "exit", "generation": 3, "stage": "train-64px", "localRank": 0, "code": 82, "outcome": "failed"}
    for second in ("42.25", "42.00"):  # the first one counts
        finished.write("demo-w0", 0, [end | {"at": f"2026-11-23T10:00:{second}Z", "step": 47}])
    assert summary_of(finished)["recovery_seconds"] == [4.3]


def test_restarts_are_counted_by_cause(finished):
    expected = {"application": 0, "infrastructure": 1, "preemption": 0, "hang": 0}
    assert summary_of(finished)["restarts"] == expected


def test_videos_and_their_training_clips_are_fetched(finished):
    first, second = summary_of(finished)["videos"]
    assert (finished.workdir / first["file"]).read_bytes() == b"sampled bytes"
    assert (finished.workdir / first["reference_file"]).read_bytes() == b"clip bytes"
    assert second["file"] is None  # its object is missing, which is no reason to lose the summary
    assert second["reference_file"] is None


def test_drops_are_counted_and_kept(finished):
    assert summary_of(finished)["drops"] == {
        "videos": 7,
        "clips": 5,
        "dropped": 3,
        "counts": {"unreadable": 1, "aspect": 1, "duplicate": 1},
    }
    assert len(json.loads((finished.workdir / "drop-report.json").read_text())["dropped"]) == 3


def test_no_flipped_bit_of_a_report_or_an_index_is_believed(finished):
    whole, generator = summary_of(finished), random.Random(5)
    for name, field, lost in (("curate/drop-report.json", "drops", None), ("sample/videos.json", "videos", [])):
        uri = f"{finished.prefix(name)}"
        data = finished.objects.objects[uri]
        for bit in generator.sample(range(8 * len(data)), 150):
            harmed = bytearray(data)
            harmed[bit // 8] ^= 1 << bit % 8
            finished.objects.objects[uri] = bytes(harmed)
            found = summary_of(finished)
            assert found[field] == (lost if found["damaged"] else whole[field]), f"bit {bit}"
            assert all(text.startswith(f"{uri}: damaged, as 3 readings say") for text in found["damaged"])
        finished.objects.objects[uri] = data


def test_a_report_that_is_misread_once_is_read_again(finished):
    whole, objects, seen = summary_of(finished), finished.objects, set()

    class MisreadOnce:
        def get(self, uri):
            first = uri.endswith(("drop-report.json", "videos.json")) and uri not in seen
            seen.add(uri)
            return objects.get(uri)[:-9] if first else objects.get(uri)

        download = staticmethod(objects.download)

    assert json.loads(write_summary(finished.workdir, finished.run(), MisreadOnce()).read_text()) == whole


def test_checkpoints_are_known_from_the_status_when_a_pod_folder_is_gone(synthetic):
    stage = synthetic.stage("train", "train", 2)
    entry = synthetic.generation(stage, "Started", [0], 1, 2)
    point = {"step": 2, "capturedAt": entry["createdAt"], "committedAt": entry["endedAt"], "uri": "s3://runs/x"}
    entry["progress"]["saved"] = [point | {"dataStallUs": 0, "checkpointUs": 0}]
    (checkpoint,) = summary_of(synthetic)["checkpoints"]
    assert (checkpoint["uri"], checkpoint["step"], checkpoint["stage"]) == ("s3://runs/x", 2, "train")


def test_generations_older_than_the_status_remembers_come_from_the_records(finished):
    del finished.generations[2]
    first = stage_of(summary_of(finished), "train-64px")["generations"][0]
    assert (first["number"], first["world_size"], first["first_step"], first["last_step"]) == (3, 4, 1, 47)
    assert first["reason"] == "Unknown"


def test_a_run_that_never_started_has_a_summary(synthetic):
    synthetic.phase = "Failed"
    summary = summary_of(synthetic)
    assert (summary["stages"], summary["videos"], summary["samples"]["order_sha256"]) == ([], [], None)
    assert summary["gpu_seconds"]["held"] == 0
