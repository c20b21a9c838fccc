"""`videotrain check`: mistakes that people make are refused with field, value and what is allowed, before any cost."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from videotrain.cli import main
from videotrain.commands import check
from videotrain.errors import UsageError
from videotrain_api.checks import CHECKS, Finding
from videotrain_api.vocabulary import ExitCode

ROOT = Path(__file__).parents[4]
GOOD = ROOT / "tests/unit/videotrain_api/good.yaml"
REMOVED = object()


@cache
def good() -> dict[str, Any]:
    return yaml.safe_load(GOOD.read_text())


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The good manifest with fields by their path, such as `spec.stages.3.train.steps`."""
    manifest = copy.deepcopy(good())
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        place: Any = manifest
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place[parent]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return manifest


TRAIN = "spec.stages.3.train"
BUCKET = f"{TRAIN}.buckets.0"
SAMPLE = "spec.stages.4.sample"
T5 = {"kind": "t5-clip"}
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    # What six people did.
    "checkpiont": ({"spec.checkpiont": {}}, "spec.checkpiont", "did you mean 'checkpoint'?"),
    "optimiser": ({f"{TRAIN}.optimiser": {}}, "spec.stages[3].train.optimiser", "did you mean 'optimizer'?"),
    "no buckets": ({f"{TRAIN}.buckets": REMOVED}, "spec.stages[3].train.buckets", "is required"),
    "resolution 256": ({f"{BUCKET}.resolution": "256"}, "spec.stages[3].train.buckets[0].resolution", "such as 256px"),
    "resolution as a number": ({f"{BUCKET}.resolution": 256}, "spec.stages[3].train.buckets[0].resolution", ""),
    "nodes.min 0": ({"spec.nodes.min": 0}, "spec.nodes.min", "1"),
    "min above max": ({"spec.nodes.min": 3}, "spec.nodes.min", "must be at most max (2)"),
    "contextParallel 3": (
        {f"{TRAIN}.parallel.contextParallel": 3},
        "spec.stages[3].train.parallel.contextParallel",
        "",
    ),
    "price 2.0": ({"spec.pool.pricePerGpuHour": 2.0}, "spec.pool.pricePerGpuHour", "quotes"),
    "budget 100": ({"spec.budget": {"maxCost": 100}}, "spec.budget.maxCost", "quotes"),
    "mmdit11b": ({"spec.model.preset": "mmdit11b"}, "spec.model.preset", "did you mean 'mmdit-11b'?"),
    "8 GPUs without micro-batches": (
        {"spec.pool.gpusPerNode": 8},
        "spec.stages[3].train.parallel.microBatchesPerStep",
        "or more",
    ),
    "/data/out": ({"spec.storage.uri": "/data/out"}, "spec.storage.uri", "s3://BUCKET/PREFIX"),
    "1400GB": ({"spec.pool.memory": "1400GB"}, "spec.pool.memory", ""),
    "MyRun": ({"metadata.name": "MyRun"}, "metadata.name", "lower-case"),
    "two stages of a name": ({"spec.stages.4.name": "train"}, "spec.stages[4].name", "unique"),
    "frames 7": ({f"{BUCKET}.frames": 7}, "spec.stages[3].train.buckets[0].frames", "the nearest are 4 and 8"),
    "task and member": ({"spec.stages.3.task": "encode"}, "spec.stages[3]", "encode"),
    "train before encode": ({"spec.stages.2": good()["spec"]["stages"][3]}, "spec.stages[2].task", "latents"),
    "no dataset": ({"spec.dataset": {}}, "spec.stages[0].task", "needs raw videos"),
    "t5 without weights": ({"spec.textEncoder": T5}, "spec.textEncoder.weights", "the folder with both encoders"),
    "heads that do not divide": ({"spec.model.numHeads": 3}, "spec.model.hiddenSize", "numHeads (3)"),
    "16x9": ({f"{SAMPLE}.aspectRatio": "16x9"}, "spec.stages[4].sample.aspectRatio", "16:9"),
    "learningRate 3e-4": ({f"{TRAIN}.optimizer.learningRate": 3e-4}, "spec.stages[3].train.optimizer.learningRate", ""),
    "Job": ({"kind": "Job"}, "", "allowed kinds: VideoTrainingRun, Secret"),
    "v1": ({"apiVersion": "v1"}, "", "use 'videotrain.dev/v1alpha1'"),
    "hf without a repository": ({"spec.model.weights": "hf://weights"}, "spec.model.weights", "hf://[datasets/]ORG"),
    "a hub id": (
        {"spec.model.weights": "hpcai-tech/Open-Sora-v2"},
        "spec.model.weights",
        "write hf://hpcai-tech/Open-Sora-v2",
    ),
    "LoRA target to_q": (
        {f"{TRAIN}.lora": {"rank": 4, "targets": ["to_q"]}, "spec.model.weights": "s3://b-ucket/m.safetensors"},
        "spec.stages[3].train.lora.targets[0]",
        "q_proj",
    ),
    "LoRA without weights": ({f"{TRAIN}.lora": {"rank": 4}}, "spec.stages[3].train.lora", "set spec.model.weights"),
    "contextParallel of an autoencoder": (
        {"spec.stages.1.autoencoder.parallel.contextParallel": 2},
        "spec.stages[1].autoencoder.parallel.contextParallel",
        "",
    ),
    # Others.
    "relative weights": ({"spec.model.weights": "weights.safetensors"}, "spec.model.weights", "a relative path"),
    "weights from the web": (
        {"spec.model.weights": "https://huggingface.co/a/b/resolve/main/m.safetensors"},
        "spec.model.weights",
        "no worker reads https:// here",
    ),
    "weights in another cloud": ({"spec.autoencoder.weights": "gs://bucket/ae"}, "spec.autoencoder.weights", "gs://"),
    "S3 in capitals": ({"spec.model.weights": "S3://bucket/m"}, "spec.model.weights", "write s3://"),
    "two slashes": ({"spec.model.weights": "file://data/m"}, "spec.model.weights", "file:///data/m"),
    "home": ({"spec.dataset.videos": "~/videos"}, "spec.dataset.videos", "a relative path"),
    "a path of videos": ({"spec.dataset.videos": "/videos"}, "spec.dataset.videos", "write file:///videos"),
    "dots": ({"spec.dataset.videos": "./videos"}, "spec.dataset.videos", "a relative path"),
    "weights of a package": ({"spec.model.weights": "package://a/b"}, "spec.model.weights", "no worker reads package"),
    "dots in a repository": ({"spec.model.weights": "hf://a/b/../c"}, "spec.model.weights", "hf://[datasets/]ORG"),
    "text encoder by id": (
        {"spec.textEncoder": T5 | {"weights": "google/t5-v1_1-xxl"}},
        "spec.textEncoder.weights",
        "write hf://google/t5-v1_1-xxl",
    ),
    "a path of a table": (
        {"spec.dataset.captionTable": "captions.csv"},
        "spec.dataset.captionTable",
        "a relative path",
    ),
    "initFrom of an id": (
        {f"{TRAIN}.initFrom": {"uri": "hpcai-tech/Open-Sora-v2"}},
        "spec.stages[3].train.initFrom.uri",
        "write hf://",
    ),
    "a picture on the web": (
        {f"{SAMPLE}.prompts": [{"text": "x", "image": "http://x/a.png", "condition": "i2v_head"}]},
        "spec.stages[4].sample.prompts[0].image",
        "no worker reads http://",
    ),
    "steps 0": ({f"{TRAIN}.steps": 0}, "spec.stages[3].train.steps", "1"),
    "steps as text": ({f"{TRAIN}.steps": "100"}, "spec.stages[3].train.steps", "integer"),
    "batch 0": ({f"{BUCKET}.batchSize": 0}, "spec.stages[3].train.buckets[0].batchSize", "1"),
    "batch of a million": ({f"{BUCKET}.batchSize": 1_000_000}, "spec.stages[3].train.buckets[0].batchSize", "GB"),
    "minFrames above frames": (
        {f"{BUCKET}.minFrames": 16},
        "spec.stages[3].train.buckets[0].minFrames",
        "",
    ),
    "a rate of 0": (
        {f"{TRAIN}.optimizer.learningRate": [{"value": 0}]},
        "spec.stages[3].train.optimizer.learningRate[0].value",
        "",
    ),
    "beta of 1": ({f"{TRAIN}.optimizer.beta2": 1}, "spec.stages[3].train.optimizer.beta2", ""),
    "precision fp16": ({f"{TRAIN}.precision": "fp16"}, "spec.stages[3].train.precision", "bf16"),
    "fp8 in fp32": ({f"{TRAIN}.precision": "fp32", f"{TRAIN}.fp8": True}, "spec.stages[3].train.fp8", ""),
    "engine fsdp": ({f"{TRAIN}.parallel.engine": "fsdp"}, "spec.stages[3].train.parallel.engine", "fsdp2"),
    "zeroStage 4": ({f"{TRAIN}.parallel.zeroStage": 4}, "spec.stages[3].train.parallel.zeroStage", ""),
    "zeroStage under fsdp2": (
        {f"{TRAIN}.parallel.engine": "fsdp2", f"{TRAIN}.parallel.zeroStage": 3},
        "spec.stages[3].train.parallel.zeroStage",
        "",
    ),
    "no conditioning": ({f"{TRAIN}.conditioning": {"t2v": 0}}, "spec.stages[3].train.conditioning", ""),
    "an unknown subset": ({f"{TRAIN}.subset": "best"}, "spec.stages[3].train.subset", ""),
    "an unknown score": (
        {f"{TRAIN}.select": [{"score": "beauty", "min": 1}]},
        "spec.stages[3].train.select[0].score",
        "motion",
    ),
    "initFrom of a stage that is not there": (
        {f"{TRAIN}.initFrom": {"stage": "warmup"}},
        "spec.stages[3].train.initFrom.stage",
        "",
    ),
    "no price": ({"spec.pool.pricePerGpuHour": REMOVED}, "spec.pool.pricePerGpuHour", ""),
    "currency": ({"spec.pool.currency": "DOLLAR"}, "spec.pool.currency", ""),
    "no pool": ({"spec.pool": REMOVED}, "spec.pool", "is required"),
    "a bucket of capitals": ({"spec.storage.uri": "s3://MyBucket/x"}, "spec.storage.uri", "lower-case"),
    "nothing to draw": ({f"{SAMPLE}.fromDataset": 0}, "spec.stages[4].sample", ""),
    "candidates without a scorer": ({f"{SAMPLE}.candidates": 4}, "spec.stages[4].sample.scorer", "steadiness"),
    "an image without its kind": (
        {f"{SAMPLE}.prompts": [{"text": "x", "condition": "i2v_head"}]},
        "spec.stages[4].sample.prompts[0]",
        "",
    ),
    "hours for seconds": ({"spec.failurePolicy": {"hangSeconds": "10m"}}, "spec.failurePolicy.hangSeconds", "integer"),
    "an action": ({"spec.budget": {"maxCost": "5", "action": "Stop"}}, "spec.budget.action", "CheckpointAndSuspend"),
    "credentials in the environment": (
        {"spec.pool.env": {"AWS_SECRET_ACCESS_KEY": "x"}},
        "spec.pool.env",
        "credentialsSecret",
    ),
    "a number in the environment": ({"spec.pool.env": {"NCCL_DEBUG": 1}}, "spec.pool.env", ""),
    "keys in the spec": ({"spec.storage.accessKey": "AK"}, "spec.storage.accessKey", "credentialsSecret"),
    "no stages": ({"spec.stages": []}, "spec.stages", "1"),
    "validation of everything": (
        {f"{TRAIN}.validation": {"share": 1}},
        "spec.stages[3].train.validation.share",
        "",
    ),
    "dropout of 1": ({f"{TRAIN}.textDropout": 1.0}, "spec.stages[3].train.textDropout", ""),
    "GPUs by their name": ({"spec.pool.gpuMemoryGigabytes": "H200"}, "spec.pool.gpuMemoryGigabytes", "number"),
    "warn at 150 percent": ({"spec.budget": {"maxCost": "5", "warnAtPercent": [150]}}, "spec.budget.warnAtPercent", ""),
    "a seed below 0": ({"spec.seed": -1}, "spec.seed", "0"),
    "curation crossed": ({"spec.stages.0.curate.minSeconds": 10.0}, "spec.stages[0].curate", ""),
    "an image without a name": ({"spec.image": ""}, "spec.image", ""),
}


def test_there_are_more_than_eighty_mistakes():
    assert len(MISTAKES) >= 80


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused(name, tmp_path, capsys):
    changes, path, allowed = MISTAKES[name]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed(changes)))
    assert main(["check", str(file), "--quick", "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    told = [problem for problem in problems if problem["path"].startswith(path) and allowed in problem["message"]]
    assert told, problems
    assert all(problem["message"] for problem in problems)


def test_what_the_manifest_alone_tells(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed({"spec.checkpoint": {"everySteps": 5}})))
    assert main(["check", str(file), "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["valid"], document["problems"]) == (True, [])
    findings = [Finding.from_wire(finding) for finding in document["findings"]]
    assert {finding.check: finding.verdict for finding in findings} == {
        "manifest": "ok",
        "memory": "ok",
        "version": "ok",
        "location": "open",
    }
    rows = {finding.path for finding in findings if finding.check == "memory"}
    assert rows >= {"spec.stages[1].autoencoder.bucket", "spec.stages[3].train.buckets[0]"}


@pytest.mark.parametrize(
    ("image", "verdict"),
    [("videotrain/trainer:0.1.0", "ok"), ("ours/trainer:9.9.9", "warning"), ("ours/trainer@sha256:0a", "open")],
)
def test_the_version_of_the_image(image, verdict, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed({"spec.image": image})))
    assert main(["check", str(file), "--quick", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["verdict"] for f in findings if f["check"] == "version"] == [verdict]


def test_people_are_shown_what_nobody_was_asked(capsys):
    assert main(["check", str(GOOD), "--quick"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{GOOD}: good can be accepted. Stages: curate (curate)")
    assert "left out by --quick" in shown
    unasked = ", ".join(name for name, each in CHECKS.items() if each.by == "cluster")
    assert f"Not asked: {unasked}; --cluster" in shown


def test_what_the_trainer_sees_decides_the_exit_code(tmp_path, capsys, monkeypatch):
    """The real trainer, as a process, without keys of a store."""
    for name in (*check.KEYS, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed({"spec.dataset.videos": f"file://{tmp_path}/none"})))
    assert main(["check", str(file)]) == ExitCode.DATA
    shown = capsys.readouterr().out
    assert "would fail: 1 wrong" in shown and "does not exist" in shown


@pytest.mark.parametrize(
    ("finding", "in_cluster", "verdict"),
    [
        (
            Finding(check="data", path="spec.dataset.videos", value="file:///v", verdict="wrong", message="no"),
            True,
            "open",
        ),
        (
            Finding(check="data", path="spec.dataset.videos", value="file:///v", verdict="wrong", message="no"),
            False,
            "wrong",
        ),
        (
            Finding(check="data", path="spec.dataset.videos", value="s3://b/v", verdict="wrong", message="no"),
            True,
            "wrong",
        ),
        (Finding(check="packages", path="spec.x", value="ray", verdict="wrong", message="no"), True, "open"),
    ],
)
def test_files_of_pods_cannot_be_seen_from_here(finding, in_cluster, verdict):
    assert check._as_seen_from_here(finding, in_cluster=in_cluster, nameless=False).verdict == verdict


def test_what_is_hardly_meant_is_a_warning_and_refuses_nothing(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed({f"{SAMPLE}.frames": 16, "spec.checkpoint": {"everySteps": 100}})))
    assert main(["check", "--quick", "--json", str(file)]) == 0
    document = json.loads(capsys.readouterr().out)
    warned = {f["path"]: f["message"] for f in document["findings"] if f["verdict"] == "warning"}
    assert document["valid"] and set(warned) == {"spec.checkpoint.everySteps", "spec.stages[4].sample.frames"}
    assert main(["check", "--quick", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning" in shown and "spec.stages[4].sample.frames" in shown


def secret(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "data": data}


def test_keys_that_are_no_texts_matter_only_to_the_store():
    assert check.credentials_of(secret(AWS_ACCESS_KEY_ID="YQ==", icon="/w==")) == {"AWS_ACCESS_KEY_ID": "a"}
    with pytest.raises(UsageError, match=r"Secret 's3': data\['AWS_ACCESS_KEY_ID'\] is no base64 of a text"):
        check.credentials_of(secret(AWS_ACCESS_KEY_ID="/w=="))


def test_a_refused_file_does_not_end_the_check_of_others(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("kind: Job\n")
    assert main(["check", "--quick", str(bad), str(tmp_path / "none.yaml"), str(GOOD)]) == 2
    shown = capsys.readouterr()
    assert f"{GOOD}: good can be accepted" in shown.out
    assert "allowed kinds" in shown.err and "there is no such file" in shown.err


def test_json_of_several_runs_is_one_array(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("kind: Job\n")
    assert main(["check", "--quick", "--json", str(bad), str(GOOD)]) == 2
    documents = json.loads(capsys.readouterr().out)
    assert [(each["file"], each["valid"]) for each in documents] == [(str(bad), False), (str(GOOD), True)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no manifest is named"),
        (["none.yaml"], "there is no such file"),
        ([str(GOOD), "--defaults", "none.yaml"], "none.yaml: there is no such file"),
        ([str(GOOD), "--set", "x"], "PATH=VALUE is needed"),
    ],
)
def test_a_wrong_command_line_is_json_too(arguments, told, capsys):
    assert main(["check", "--quick", "--json", *arguments]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["valid"], document["name"]) == (False, None)
    assert told in document["problems"][0]["message"]


TRAINER = '{"check": "data", "path": "spec.x", "verdict": "ok", "message": "seen"}'


@pytest.mark.parametrize(
    ("program", "code", "told"),
    [
        (f"print('a library says'); print('''{TRAINER}''')", 0, "seen"),
        ("raise SystemExit('no memory')", 1, "the trainer could not look: no memory"),
        ("import os; os.kill(os.getpid(), 9)", 1, "the trainer could not look: it ended with exit code -9"),
        ("import time; time.sleep(1000)", 1, "the trainer could not look: it gave no answer within 1 s"),
    ],
)
def test_a_trainer_that_does_not_answer_is_no_consent(program, code, told, capsys, monkeypatch):
    run = subprocess.run
    monkeypatch.setattr(check.subprocess, "run", lambda _, **rest: run([sys.executable, "-c", program], **rest))
    monkeypatch.setattr(check, "TRAINER_SECONDS", 1 if "sleep" in program else 60)
    monkeypatch.setattr(check, "_has_trainer", lambda: True)
    assert main(["check", str(GOOD), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["valid"] is (code == 0)
    assert told in [finding["message"] for finding in document["findings"]]
