"""The folder with what a run made, out of an object store."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from videotrain.errors import UsageError
from videotrain.report.workdir import S3Objects
from videotrain.results import folder as results_folder
from videotrain.results.folder import manifest_of, write_results
from videotrain.results.models import drawing_flags, folder_of, model_files
from videotrain_api.validation import parse_run

TINY = Path(__file__).parents[4] / "manifests" / "examples" / "tiny.yaml"


@pytest.fixture
def run():
    """A finished run with an adapter."""
    tiny_run: dict[str, Any] = yaml.safe_load(TINY.read_text())
    tiny_run["spec"]["model"]["weights"] = "s3://elsewhere/base.safetensors"
    next(stage for stage in tiny_run["spec"]["stages"] if stage["name"] == "train")["train"]["lora"] = {"rank": 2}
    stages = [
        {"name": stage["name"], "task": stage["task"], "state": "Succeeded", "configHash": "0" * 16}
        for stage in tiny_run["spec"]["stages"]
    ]
    return tiny_run | {"status": {"phase": "Succeeded", "stages": stages}}


@pytest.fixture
def client():
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="videotrain")
        for stage in ("autoencoder", "train"):
            client.put_object(
                Bucket="videotrain", Key=f"tiny/tiny/{stage}/weights/model.safetensors", Body=stage.encode()
            )
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            client.put_object(Bucket="videotrain", Key=f"tiny/tiny/train/weights/adapter/{name}", Body=name.encode())
        yield client


def written(tmp_path, run, client, **files):
    return write_results(tmp_path / "results", run, manifest_of(run), S3Objects(client), None, files)


def test_weights_adapter_manifest_and_models_are_there_and_the_manifest_is_one_again(tmp_path, run, client):
    results = written(tmp_path, run, client)
    folder = results.folder
    assert (folder / "transformer.safetensors").read_bytes() == b"train"
    assert (folder / "autoencoder.safetensors").read_bytes() == b"autoencoder"
    assert (folder / "adapter" / "adapter_config.json").read_bytes() == b"adapter_config.json"
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    assert parse_run(manifest).spec == parse_run(manifest_of(run)).spec
    assert "status" not in manifest
    models = model_files(folder)
    assert models.transformer == str(folder / "transformer.safetensors")
    assert json.loads((folder / "models.json").read_text())["model"]["hiddenSize"]
    assert results.notes == []


def test_what_is_there_is_not_fetched_again_and_what_changed_is(tmp_path, run, client):
    path = written(tmp_path, run, client).folder / "transformer.safetensors"
    before = path.stat().st_ino
    written(tmp_path, run, client)
    assert path.stat().st_ino == before
    client.put_object(Bucket="videotrain", Key="tiny/tiny/train/weights/model.safetensors", Body=b"other")
    written(tmp_path, run, client)
    assert path.read_bytes() == b"other"
    path.write_bytes(b"torn")
    written(tmp_path, run, client)
    assert path.read_bytes() == b"other"


def test_weights_that_do_not_fit_on_the_disk_stay_where_they_are(tmp_path, run, client, monkeypatch):
    monkeypatch.setattr(results_folder, "SPARE_BYTES", 2**62)
    results = written(tmp_path, run, client)
    assert not (results.folder / "transformer.safetensors").exists()
    assert "stays at s3://videotrain/tiny/tiny/train/weights/model.safetensors" in results.notes[0]
    # Not the weights that training began from.
    assert model_files(results.folder).transformer == "s3://videotrain/tiny/tiny/train/weights/model.safetensors"


def test_stages_that_are_not_complete_give_nothing(tmp_path, run, client):
    for stage in run["status"]["stages"]:
        if stage["name"] == "train":
            stage["state"] = "Running"
            del run["spec"]["model"]["weights"]
    results = written(tmp_path, run, client)
    assert [each.file for each in results.fetched] == ["autoencoder.safetensors"]
    with pytest.raises(UsageError, match=r"transformer\.safetensors: not there: no stage that trains it is complete"):
        model_files(results.folder)


def test_files_beside_it_are_shared_and_follow_when_they_are_written_anew(tmp_path, run, client):
    report, samples = tmp_path / "report.html", tmp_path / "samples"
    samples.mkdir()
    for text in ("old", "new", "new"):
        report.unlink(missing_ok=True)
        report.write_text(text)
        (samples / "a.mp4").write_text(text)
        folder = written(tmp_path, run, client, **{"report.html": report, "samples": samples}).folder
        written(tmp_path, run, client, **{"report.html": report, "samples": samples})
        assert (folder / "report.html").read_text() == (folder / "samples" / "a.mp4").read_text() == text
    assert not list(folder.rglob("*.partial"))


def test_drawing_is_as_in_the_sample_stage_else_as_the_largest_clips(tmp_path, run, client):
    folder = written(tmp_path, run, client).folder
    flags = drawing_flags(folder)
    assert flags[flags.index("--resolution") + 1] == "32px"
    assert flags[flags.index("--steps") + 1] == "4"
    del run["spec"]["stages"][-1]
    run["spec"]["stages"][-1]["train"]["buckets"][0]["frames"] = 16
    flags = drawing_flags(written(tmp_path, run, client).folder)
    assert flags == ["--prompt-style", "fps-motion", "--resolution", "32px", "--num-frames", "16", "--aspect", "1:1"]


def test_a_folder_without_results_says_who_writes_them(tmp_path):
    with pytest.raises(UsageError, match="`videotrain local` writes it when a run ends"):
        folder_of(tmp_path, None)
