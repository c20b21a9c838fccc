"""`videotrain local` from end to end: real processes, a real object store, real faults."""

import json
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.promtool import check_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def stage_of(summary, name):
    return next(stage for stage in summary["stages"] if stage["name"] == name)


def runs(line):
    """Whether a line tells that workers train."""
    return line.get("status", {}).get("phase") == "Running"


def newest(line):
    """The newest generation in a line with a status."""
    return line["status"]["generations"][-1]


def assert_bill_is_whole(summary):
    spent = dict(summary["gpu_microseconds"])
    held = spent.pop("held")
    assert sum(spent.values()) == held > 0
    assert sum(summary["cost"]["by_bucket"].values()) == summary["cost"]["total_micros"]
    assert summary["cost"]["estimated"] is False


@pytest.fixture
def assert_same_samples(request):
    """Compares a run with the undisturbed one, which is awaited only then."""

    def same(summary):
        undisturbed = request.getfixturevalue("undisturbed")
        assert summary["samples"]["order_sha256"] == undisturbed["samples"]["order_sha256"]
        assert summary["samples"]["lost"] == 0
        assert summary["samples"]["problems"] == []

    return same


def test_an_undisturbed_run_learns_and_leaves_its_results(undisturbed):
    assert undisturbed["phase"] == "Succeeded"
    assert [stage["task"] for stage in undisturbed["stages"]] == ["curate", "autoencoder", "encode", "train", "sample"]
    assert [g["world_size"] for g in stage_of(undisturbed, "train")["generations"]] == [2]
    assert undisturbed["gpu_seconds"]["lost"] == 0
    assert len(undisturbed["videos"]) == 1
    assert_bill_is_whole(undisturbed)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "videotrain", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_results_are_drawn_from_exported_and_served(held_workdir, tmp_path):
    results = held_workdir / "results"
    there = {path.name for path in results.iterdir()}
    assert {"transformer.safetensors", "autoencoder.safetensors", "bill.json", "manifest.yaml", "report.html"} <= there
    assert list((results / "samples").glob("*.mp4"))
    (video,) = command("sample", "--workdir", held_workdir, "--prompt", "a ball", "--steps", 2).splitlines()
    settings = json.loads(Path(video).with_suffix(".json").read_text())["request"]["settings"]
    assert (settings["width"], settings["frames"], settings["steps"]) == (32, 8, 2)
    command("export", "--workdir", held_workdir, "--to", "open-sora-v2", tmp_path / "exported")
    trained = load_file(results / "transformer.safetensors")
    exported = load_file(tmp_path / "exported" / "Open_Sora_v2_Video_DC_AE.safetensors")
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[name], exported[name]) for name in trained)

    server = subprocess.Popen(
        [sys.executable, "-m", "videotrain", "serve", held_workdir], stdout=subprocess.PIPE, text=True
    )
    try:
        words = [shlex.split(server.stdout.readline()) for _ in range(4)]
        address, *keys = (word.partition("=")[2] for _, word in words)
        client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id=keys[0], aws_secret_access_key=keys[1], region_name=keys[2]
        )
        stored = client.get_object(Bucket="videotrain", Key="tiny/local/train/weights/model.safetensors")["Body"].read()
        assert stored == (results / "transformer.safetensors").read_bytes()
        bill = json.loads((results / "bill.json").read_text())
        kept = client.get_object(Bucket="videotrain", Key=f"tiny/{bill['uid']}/bill.json")["Body"].read()
        assert json.loads(kept) == bill
    finally:
        server.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_a_fork_goes_on_with_more_steps_where_the_other_run_ended_and_one_with_another_size_encodes_only(
    undisturbed, held_workdir, steps, tmp_path
):
    longer = tmp_path / "longer"
    command("fork", "--workdir", held_workdir, "--from", "train", "--to", longer, "--optimizer",
            "--set", f"stages[train].train.steps={steps + 10}", "--set", "pool.pricePerGpuHour=3.00")  # fmt: skip
    summary = json.loads((longer / "summary.json").read_text())
    train = stage_of(summary, "train")
    assert [(g["first_step"], g["last_step"]) for g in train["generations"]] == [(steps + 1, steps + 10)]
    assert train["last_tenth_loss"] < stage_of(undisturbed, "train")["first_tenth_loss"]
    (before,) = [stage for stage in undisturbed["samples"]["stages"] if stage["name"] == "train"]
    (after,) = summary["samples"]["stages"]
    assert after["consumed"] == before["consumed"] // steps * (steps + 10)
    assert summary["samples"]["problems"] == []
    assert_bill_is_whole(summary)

    larger = tmp_path / "larger"
    row = "[{resolution: 64px, frames: 8, batchSize: 2, aspectRatios: ['1:1']}]"
    command("fork", "--workdir", held_workdir, "--from", "encode", "--to", larger, "--set",
            f"stages[train].train.buckets={row}", "--set", "stages[train].train.steps=4")  # fmt: skip
    summary = json.loads((larger / "summary.json").read_text())
    assert [stage["task"] for stage in summary["stages"]] == ["encode", "train", "sample"]
    assert (larger / "results" / "transformer.safetensors").is_file()
    refused = subprocess.run(
        [sys.executable, "-m", "videotrain", "fork", "--workdir", held_workdir, "--from", "train", "--to",
         tmp_path / "none", "--optimizer", "--set", f"stages[train].train.buckets={row}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "train.buckets" in refused.stderr
    assert "would change the order of samples" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_lost_node_costs_steps_but_no_samples_and_comes_back(start_training, manifest, assert_same_samples):
    local = start_training(manifest, "--chaos", "kill-node@stage=train,step=30")
    local.until(runs)
    endpoints = json.loads((local.workdir / "endpoints.json").read_text())
    pages = [urllib.request.urlopen(url).read() for url in
             (endpoints["operator"], *(f"{agent}/metrics" for agent in endpoints["agents"].values()))]  # fmt: skip
    assert len(pages) == 3
    for page in pages:
        check_metrics(page.decode())
    assert local.end() == 0, local.told()
    assert local.processes() == []
    summary = local.summary()
    sizes = [generation["world_size"] for generation in stage_of(summary, "train")["generations"]]
    assert sizes == [2, 2, 1, 2], local.told()
    assert summary["gpu_seconds"]["lost"] > 0
    assert summary["restarts"]["infrastructure"] == 1
    assert_same_samples(summary)
    assert_bill_is_whole(summary)


def test_with_copies_in_memory_a_lost_node_costs_at_most_the_steps_between_two_of_them(
    start_training, manifest, assert_same_samples, tmp_path
):
    data = yaml.safe_load(manifest.read_text())
    data["spec"]["checkpoint"] = {"everySteps": 400, "keepLast": 3, "peerCopies": {"everySteps": 3}}
    path = tmp_path / "copies.yaml"
    path.write_text(yaml.safe_dump(data))
    local = start_training(path, "--chaos", "kill-node@stage=train,step=100")
    assert local.end() == 0, local.told()
    assert local.processes() == []
    summary = local.summary()
    (recovery,) = summary["recoveries"]
    assert recovery["lost_steps"] <= 3
    generation = stage_of(summary, "train")["generations"][2]
    assert generation["first_step"] > 95  # and not one of the first: nothing was stored since the interrupt
    assert "copies" in generation["start_seconds"]
    assert_same_samples(summary)
    assert_bill_is_whole(summary)


def test_killed_commands_and_workers_and_hanging_ones_and_an_interrupt_end_as_if_nothing_had_been(
    start, manifest, assert_same_samples
):
    first = start(manifest)
    first.until_step("autoencoder", 3)
    processes = first.processes()
    assert processes
    first.send(signal.SIGKILL)
    first.process.wait()
    assert psutil.wait_procs(processes, timeout=30)[1] == []

    second = start(manifest, "--chaos", "kill-worker@stage=autoencoder,step=5", "--chaos", "hang@stage=train,step=30")
    second.until(lambda line: runs(line) and newest(line)["reason"] == "Hang" and line["status"]["step"] >= 50)
    second.send(signal.SIGINT)
    assert second.end() == 130, second.told()
    assert second.processes() == []
    assert second.lines[-1]["exit_code"] == 130
    suspended = second.summary()
    assert suspended["phase"] == "Suspended"
    assert suspended["restarts"]["hang"] == 1
    # The world that the killed command had, the one whose worker is killed, and the one that takes its place.
    assert len(stage_of(suspended, "autoencoder")["generations"]) == 3
    assert [g["reason"] for g in stage_of(suspended, "train")["generations"]] == ["StageStarted", "Hang"]
    assert_bill_is_whole(suspended)

    third = start(manifest)
    assert third.end() == 0, third.told()
    assert third.processes() == []
    assert_same_samples(third.summary())
    assert_bill_is_whole(third.summary())
    assert third.summary()["gpu_microseconds"]["held"] > suspended["gpu_microseconds"]["held"]


def test_an_interrupted_run_goes_on_with_the_steps_that_its_manifest_has_by_then(start, manifest, tmp_path):
    first = start(manifest)
    first.until_step("train", 50)
    first.send(signal.SIGINT)
    assert first.end() == 130, first.told()
    saved = first.summary()["stages"][3]["steps"]

    data = yaml.safe_load(manifest.read_text())
    train = next(stage["train"] for stage in data["spec"]["stages"] if stage["name"] == "train")
    train["textDropout"] = 0.5
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump(data))
    refused = start(edited)
    assert refused.end() == 2
    assert "train.textDropout: 0.5: would change the order of samples" in refused.told()

    del train["textDropout"]
    train |= {"steps": saved + 10, "optimizer": {"learningRate": [{"value": 1e-4}]}}
    edited.write_text(yaml.safe_dump(data))
    second = start(edited)
    assert second.end() == 0, second.told()
    assert any(line.get("message", "").startswith("StagesEdited: ") for line in second.lines)
    summary = second.summary()
    assert stage_of(summary, "train")["generations"][-1]["first_step"] == saved + 1
    assert stage_of(summary, "train")["steps"] == saved + 10
    assert summary["samples"]["problems"] == []
    assert_bill_is_whole(summary)


def test_a_second_command_in_the_same_directory_is_refused_and_two_interrupts_stop_at_once(start, manifest):
    local = start(manifest)
    local.until(lambda line: line.get("status", {}).get("generations"))
    other = start(manifest)
    assert other.end() == 2
    assert "a run is going on here" in other.told()
    local.send(signal.SIGTERM)
    local.until(lambda line: "suspending" in line.get("message", ""))
    local.send(signal.SIGTERM)
    assert local.end() == 130
    assert local.processes() == []
    assert "stopped at once" in local.lines[-1]["message"]
