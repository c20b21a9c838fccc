"""A run on own videos with given weights, whose inputs are all there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize

ROW = {"resolution": "64px", "frames": 8, "batchSize": 2}
OPTIMIZER = {"learningRate": [{"value": 0.001}]}
TRAIN = {"steps": 10, "buckets": [ROW], "optimizer": OPTIMIZER}
TEXT = TextEncoderSpec()


@pytest.fixture(scope="package")
def models(tmp_path_factory) -> Path:
    """A folder with the weights of a tiny transformer and a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("models")
    spec = complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny"))
    transformer = build_transformer(complete_transformer(TransformerSpec(preset="mmdit-tiny-dcae")), spec, TEXT)
    initialize(transformer, 1)
    save_file(transformer.state_dict(), folder / "transformer.safetensors")
    autoencoder = build_autoencoder(spec)
    initialize(autoencoder, 2)
    save_file(autoencoder.state_dict(), folder / "autoencoder.safetensors", {"scaling_factor": "0.5"})
    return folder


@pytest.fixture(scope="package")
def videos(tmp_path_factory, paint_video, texture) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    paint_video(folder / "one.mp4", 48, texture(1))
    return folder


@pytest.fixture
def manifest(storage, models, videos) -> dict[str, Any]:
    """Own videos, curated and encoded, and an adapter of given weights trained on them."""
    return {
        "apiVersion": "videotrain.dev/v1alpha1",
        "kind": "VideoTrainingRun",
        "metadata": {"name": "checked"},
        "spec": {
            "model": {"preset": "mmdit-tiny-dcae", "weights": f"file://{models}/transformer.safetensors"},
            "autoencoder": {"preset": "dc-ae-tiny", "weights": f"file://{models}/autoencoder.safetensors"},
            "dataset": {"videos": f"file://{videos}"},
            "storage": storage.to_wire(),
            "pool": {"gpusPerNode": 1, "pricePerGpuHour": "2"},
            "stages": [
                {"name": "curate", "task": "curate", "curate": {"minSeconds": 0.5}},
                {"name": "encode", "task": "encode", "encode": {}},
                {"name": "train", "task": "train", "train": copy.deepcopy(TRAIN) | {"lora": {"rank": 2}}},
                {"name": "sample", "task": "sample", "sample": {"resolution": "64px", "frames": 8, "fromDataset": 1}},
            ],
        },
    }
