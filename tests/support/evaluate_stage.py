"""An evaluate stage at tiny size: its clips, videos and weights, and a second rank."""

import json
from fractions import Fraction

import numpy as np
import torch
from safetensors.torch import save_file
from support.sampling import AUTOENCODER, config_of, context_of
from support.threads import set_threads

from videotrain_api.resource.evaluation import EvaluateTask, Reconstruction
from videotrain_api.resource.stages import Stage
from videotrain_api.storage.artifacts import SampledVideo, VideosIndex
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.networks.build import build_autoencoder, initialize
from videotrain_trainer.tasks import evaluate
from videotrain_trainer.worker.stage_context import World

CLIPS = {"a": 8, "b": 12, "short": 4, "c": 8}
"""Frames of each clip."""


def fill(folder, seed=2):
    """Weights, clips and what a sample stage has left."""
    store_weights(folder, seed)
    for name, frames in CLIPS.items():
        _video(folder / f"run/clips/clips/{name}.mp4", frames, len(name) + frames)
    rows = [
        dict.fromkeys(CLIP_SCHEMA.names) | {"uid": uid, "uri": f"clips/{uid}.mp4", "frames": frames, "kept": True}
        for uid, frames in CLIPS.items()
    ]
    (folder / "run/clips/manifest.parquet").write_bytes(to_parquet(rows, CLIP_SCHEMA))
    for number in (1, 2):
        _video(folder / f"run/draw/videos/{number:04d}.mp4", 8, number)
    videos = [
        SampledVideo(
            number=number,
            uri=f"file://{folder}/run/draw/videos/{number:04d}.mp4",
            prompt="A rabbit.",
            condition="t2v",
            seed=number,
            width=64,
            height=64,
            frames=8,
            fps=24,
            settings={},
        )
        for number in (1, 2)
    ]
    (folder / "run/draw/videos.json").write_bytes(sealed_json(VideosIndex(videos=videos).to_wire()))
    (folder / "scratch").mkdir()
    return folder


def store_weights(folder, seed):
    """An autoencoder of other numbers."""
    autoencoder = build_autoencoder(AUTOENCODER)
    initialize(autoencoder, seed)
    save_file(autoencoder.state_dict(), folder / "autoencoder.safetensors")


def evaluate_config(folder, **changes):
    """Both kinds of measures; `changes` are fields of the task."""
    fields = {"reconstruction": Reconstruction(resolution="64px", frames=8), "videos": "draw"} | changes
    drawn = config_of(folder)
    paths = drawn.paths.model_copy(
        update={"output": f"file://{folder}/run/measure", "model_weights": None, "videos": f"file://{folder}/run/draw"}
    )
    stage = Stage(name="measure", task="evaluate", evaluate=EvaluateTask(**fields))
    return drawn.model_copy(update={"stage": stage, "paths": paths})


def measure_as_rank(rank, folder):
    """Be one of two ranks that share the work; importable, so that a spawned process finds it."""
    set_threads()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    scratch = folder / f"scratch-{rank}"
    scratch.mkdir()
    world = World(rank=rank, size=2, local_rank=rank, device=torch.device("cpu"))
    context = context_of(folder, evaluate_config(folder), world=world, scratch=scratch, cache=scratch)
    assert evaluate.run(context) == "completed"
    kinds = [record.kind for record in context.records]
    (folder / f"kinds-{rank}.json").write_text(json.dumps(kinds))
    torch.distributed.destroy_process_group()


def _video(path, frames, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = np.random.default_rng(seed).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    write_mp4(list(content), path, Fraction(24))
