"""Clips, latents, a training step and drawn videos of a tiny run with any autoencoder."""

from fractions import Fraction

import boto3
import google_crc32c
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import save_file
from support.first_weights import begin
from support.sampling import TEXT, config_of, context_of

from videotrain_api.config.stage_config import LatentReader
from videotrain_api.resource.stages import (
    Bucket,
    ConditioningMix,
    EncodeTask,
    LearningRatePiece,
    Optimizer,
    ParallelLayout,
    Prompt,
    Stage,
    TrainTask,
)
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, read_table, to_parquet
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.networks.build import build_transformer, initialize
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import encode, sample
from videotrain_trainer.tasks.train import FlowObjective


@pytest.fixture
def storage(monkeypatch):
    """An S3 bucket, in which the encode stage looks whether it may write."""
    keys = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
    yield Storage(uri="s3://bucket/run", endpoint_url=f"http://{host}:{port}")
    server.stop()


def clip_row(folder, name, seed, length=15):
    """A clip of noise and its row of the manifest."""
    path = folder / f"run/clips/clips/{name}.mp4"
    frames = np.random.default_rng(seed).integers(0, 255, (length, 64, 64, 3), dtype=np.uint8)
    write_mp4(list(frames), path, Fraction(24))
    facts = {"uid": name, "uri": f"clips/{name}.mp4", "caption": f"Noise {name}.", "kept": True}
    facts |= {"frames": length, "fps": 24.0, "height": 64, "width": 64, "motion": 3.0, "source": name}
    return dict.fromkeys(CLIP_SCHEMA.names) | facts | {"crc32c": google_crc32c.value(path.read_bytes())}


class LatentRun:
    """A folder with a tiny transformer and two clips; the weights of the autoencoder are the caller's.

    Args:
        folder: empty.
        model: specification of the transformer.
        spec: specification of the autoencoder.
        weights: file or folder of its weights.
    """

    def __init__(self, folder, model, spec, weights):
        self.folder, self.model, self.spec, self.weights = folder, model, spec, weights
        self.frames = spec.time.frames(2 + spec.causal)
        transformer = build_transformer(model, spec, TEXT)
        initialize(transformer, 1)
        torch.nn.init.normal_(transformer.cond_in.weight, std=0.1)
        for part in ("run/clips/clips", "run/train/weights", "scratch"):
            (folder / part).mkdir(parents=True)
        save_file(transformer.state_dict(), folder / "run/train/weights/model.safetensors")
        rows = [clip_row(folder, name, seed, length=19) for seed, name in enumerate(("one", "two"))]
        (folder / "run/clips/manifest.parquet").write_bytes(to_parquet(rows, CLIP_SCHEMA))
        self.rows = [Bucket(resolution="64px", frames=self.frames, batch_size=2, aspect_ratios=["1:1"])]

    def stage(self, name, task, **changes):
        """Configuration of a stage."""
        base = config_of(self.folder, prompts=[], frames=self.frames)
        paths = {"output": f"file://{self.folder}/run/{name}", "latents": f"file://{self.folder}/run/encode"}
        paths |= {"autoencoder_weights": f"file://{self.weights}"}
        fields = {"stage": Stage(name=name, task=name, **{name: task}), "model": self.model, "autoencoder": self.spec}
        return base.model_copy(update=fields | {"paths": base.paths.model_copy(update=paths)} | changes)

    def encode(self, storage):
        """Encode the clips; gives the rows of the manifest."""
        reader = LatentReader(stage="train", seed=1, buckets=self.rows, prompt_style="fps-motion")
        work = {"latent_readers": [reader], "storage": storage}
        config = self.stage("encode", EncodeTask(), **work)
        assert encode.run(context_of(self.folder, config)) == "completed"
        store = ObjectStore.for_storage(config.storage)
        return read_table(store, f"file://{self.folder}/run/encode/manifest.parquet", LATENT_SCHEMA).to_pylist()

    def train(self):
        """Loss of a step on the latents, with its gradient; gives the shapes of the latents too."""
        task = TrainTask(
            steps=1,
            buckets=self.rows,
            optimizer=Optimizer(learning_rate=[LearningRatePiece(value=1e-3)]),
            parallel=ParallelLayout(micro_batches_per_step=1),
            conditioning=ConditioningMix(t2v=0, i2v_head=1),
        )
        config = self.stage("train", task)
        objective = FlowObjective(context_of(self.folder, config), ObjectStore.for_storage(config.storage))
        begin(objective)
        state = objective.data.plan.start()
        loader = objective.loader(state, [[0]] * len(objective.data.plan.buckets))
        batch = loader.fetch(objective.data.plan.step(state), 0)
        loss = objective.loss(objective.module, batch)[0]
        loss.backward()
        loader.close()
        assert objective.module.cond_in.weight.grad.any()
        return float(loss.detach()), tuple(batch.latent_BCTHW.shape[1:])

    def draw(self):
        """Shapes of two drawn videos, one of a prompt and one of a clip's caption: frames, height and width."""
        fields = {"prompts": [Prompt(text="A rabbit.", seed=3)], "from_dataset": 1, "frames": self.frames}
        base = config_of(self.folder, **fields)
        paths = base.paths.model_copy(update={"autoencoder_weights": f"file://{self.weights}"})
        config = base.model_copy(update={"model": self.model, "autoencoder": self.spec, "paths": paths})
        assert sample.run(context_of(self.folder, config)) == "completed"
        found = []
        for path in sorted((self.folder / "run/draw/videos").glob("*.mp4")):
            frames = [frame for _, frame in decode(path)]
            found.append((len(frames), *frames[0].shape[:2]))
        return found
