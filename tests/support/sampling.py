"""A sample stage at tiny size: its configuration, context and a second rank."""

import json

import torch
from support.threads import set_threads

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.config.stage_config import StageConfig, StagePaths
from videotrain_api.records import StepRecord
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import Prompt, SampleTask, Stage
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_trainer.tasks import sample
from videotrain_trainer.worker.stage_context import StageContext, World

TEXT = TextEncoderSpec(context_dim=16, pooled_dim=8, max_tokens=48)
MODEL, AUTOENCODER = (
    TRANSFORMERS["mmdit-tiny-dcae"],
    AUTOENCODERS["dc-ae-tiny"].model_copy(update={"scaling_factor": 1.0}),
)


class Records(list):
    write = list.append


class Drain:
    """Asks to stop after some rounds."""

    def __init__(self, rounds=None):
        self.left = rounds

    def requested(self):
        return False

    def agreed(self):
        if self.left is None:
            return False
        self.left -= 1
        return self.left <= 0


def config_of(folder, **changes):
    prompts = [
        Prompt(text="A rabbit.", seed=3),
        Prompt(text="A street.", image=f"file://{folder}/picture.png", condition="i2v_loop", seed=4),
    ]
    fields = {"prompts": prompts, "from_dataset": 1, "resolution": "64px", "frames": 8, "sampling_steps": 2, "fps": 12}
    return StageConfig(
        run="default/test",
        stage=Stage(name="draw", task="sample", sample=SampleTask(**(fields | changes))),
        model=MODEL,
        autoencoder=AUTOENCODER,
        text_encoder=TEXT,
        dataset=Dataset(videos="file:///videos"),
        storage=Storage(uri="s3://bucket/prefix"),
        checkpoint=CheckpointPolicy(),
        paths=StagePaths(
            output=f"file://{folder}/run/draw",
            clips=f"file://{folder}/run/clips",
            model_weights=f"file://{folder}/run/train",
            autoencoder_weights=f"file://{folder}/autoencoder.safetensors",
        ),
        seed=9,
        gpus_per_node=1,
        hang_seconds=60,
        start_seconds=60,
        grace_seconds=5,
    )


def context_of(folder, config, **changes):
    fields = {
        "config": config,
        "world": World(rank=0, size=1, local_rank=0, device=torch.device("cpu")),
        "generation": 1,
        "restore": True,
        "saved_step": 0,
        "node": "here",
        "records": Records(),
        "drain": Drain(),
        "scratch": folder / "scratch",
        "cache": folder / "scratch",
    }
    return StageContext(**(fields | changes))


def draw_as_rank(rank, folder, port):
    """Be one of two ranks that share the videos; importable, so that a spawned process finds it."""
    set_threads()
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    scratch = folder / f"scratch-{rank}"
    scratch.mkdir()
    world = World(rank=rank, size=2, local_rank=rank, device=torch.device("cpu"))
    context = context_of(folder, config_of(folder), world=world, scratch=scratch)
    assert sample.run(context) == "completed"
    steps = [record.step for record in context.records if isinstance(record, StepRecord)]
    (folder / f"steps-{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()
