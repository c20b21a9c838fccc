"""Clips to latents, a transformer's training step and drawn videos with a HunyuanVideo VAE, at tiny size."""

import pytest
import torch
from safetensors.torch import save_file
from support.first_weights import begin
from support.latent_run import clip_row, storage  # noqa: F401 - a fixture
from support.sampling import TEXT, config_of, context_of

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
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
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, read_table, to_parquet
from videotrain_trainer.data.sets import read_set_info
from videotrain_trainer.data.video import decode
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize, load_autoencoder
from videotrain_trainer.networks.latents import encode_latents
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import encode, sample
from videotrain_trainer.tasks.train import FlowObjective

MODEL = TRANSFORMERS["mmdit-tiny"]
SPEC = AUTOENCODERS["hunyuan-vae-tiny"].model_copy(update={"scaling_factor": 0.476986})
ROWS = [
    Bucket(resolution="64px", frames=9, min_frames=5, batch_size=2, aspect_ratios=["1:1"]),
    Bucket(resolution="32px", frames=1, batch_size=2, aspect_ratios=["1:1"]),
]


@pytest.fixture
def folder(tmp_path):
    """Weights of tiny models and two clips with their manifest."""
    model, autoencoder = build_transformer(MODEL, SPEC, TEXT), build_autoencoder(SPEC)
    initialize(model, 1)
    torch.nn.init.normal_(model.cond_in.weight, std=0.1)
    initialize(autoencoder, 2)
    for part in ("run/clips/clips", "run/train/weights", "scratch"):
        (tmp_path / part).mkdir(parents=True)
    save_file(model.state_dict(), tmp_path / "run/train/weights/model.safetensors")
    save_file(autoencoder.state_dict(), tmp_path / "autoencoder.safetensors")
    rows = [clip_row(tmp_path, name, seed) for seed, name in enumerate(("one", "two"))]
    (tmp_path / "run/clips/manifest.parquet").write_bytes(to_parquet(rows, CLIP_SCHEMA))
    return tmp_path


def stage(folder, name, task, **changes):
    base = config_of(folder, prompts=[], frames=9)
    paths = {"output": f"file://{folder}/run/{name}", "latents": f"file://{folder}/run/encode"}
    fields = {"stage": Stage(name=name, task=name, **{name: task}), "model": MODEL, "autoencoder": SPEC}
    return base.model_copy(update=fields | {"paths": base.paths.model_copy(update=paths)} | changes)


@pytest.fixture
def encoded(folder, storage):  # noqa: F811 - the fixture
    reader = LatentReader(stage="train", seed=1, buckets=ROWS, prompt_style="fps-motion")
    work = {"latent_readers": [reader], "storage": storage}
    config = stage(folder, "encode", EncodeTask(), **work)
    assert encode.run(context_of(folder, config)) == "completed"
    return folder


def test_clips_of_1_plus_4k_frames_become_1_plus_k_latent_frames(encoded):
    store = ObjectStore.for_storage(config_of(encoded).storage)
    rows = read_table(store, f"file://{encoded}/run/encode/manifest.parquet", LATENT_SCHEMA).to_pylist()
    sizes = [(row["bucket"], row["latent_frames"], row["latent_height"], row["latent_width"]) for row in rows]
    assert sorted(sizes) == sorted(2 * [("32px/1f/1:1", 1, 4, 4), ("64px/5f/1:1", 2, 8, 8), ("64px/9f/1:1", 3, 8, 8)])
    info = read_set_info(store, f"file://{encoded}/run/encode")
    assert (info.latent_channels, info.spatial_compression) == (16, 8)


def test_a_training_step_with_given_frames_runs_on_latents_of_the_hunyuan_vae(encoded):
    rate = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])
    mix = ConditioningMix(t2v=0, i2v_head=1, i2v_loop=1, i2v_tail=1)
    task = TrainTask(
        steps=1, buckets=ROWS, optimizer=rate, parallel=ParallelLayout(micro_batches_per_step=3), conditioning=mix
    )
    config = stage(encoded, "train", task)
    objective = FlowObjective(context_of(encoded, config), ObjectStore.for_storage(config.storage))
    begin(objective)
    state = objective.data.plan.start()
    shapes = set()
    loader = objective.loader(state, [[0, 1, 2]] * len(objective.data.plan.buckets))
    order = objective.data.plan.step(state)
    for micro_batch in range(3):
        batch = loader.fetch(order, micro_batch)
        shapes.add(tuple(batch.latent_BCTHW.shape[1:]))
        loss = objective.loss(objective.module, batch)[0]
        assert 0.5 < float(loss.detach()) < 10
        loss.backward()
    loader.close()
    assert shapes
    assert all(shape[0] == 16 and shape[1] in (1, 2, 3) for shape in shapes)
    assert objective.module.cond_in.weight.grad.any()


@pytest.mark.usefixtures("alone")
def test_videos_of_1_plus_4k_frames_are_drawn_with_and_without_a_given_frame(folder):
    prompts = [Prompt(text="A rabbit.", seed=3)]
    config = config_of(folder, prompts=prompts, from_dataset=1, frames=9).model_copy(
        update={"model": MODEL, "autoencoder": SPEC}
    )
    assert sample.run(context_of(folder, config)) == "completed"
    videos = sorted((folder / "run/draw/videos").glob("*.mp4"))
    assert len(videos) == 2
    for path in videos:
        frames = [frame for _, frame in decode(path)]
        assert (len(frames), frames[0].shape) == (9, (64, 64, 3))


def test_latents_are_sampled_from_the_seed_and_name_alone(folder):
    autoencoder = load_autoencoder(SPEC, (folder / "autoencoder.safetensors").read_bytes(), "autoencoder")
    pixels = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.inference_mode():
        (drawn,) = encode_latents(autoencoder, SPEC.posterior, pixels, 7, [["a", "b", "a"]])
        assert torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(encode_latents(autoencoder, "mode", pixels, 7, [["a"]])[0][0], autoencoder.encode(pixels)[0])
        spread = (drawn[0] - autoencoder.encode(pixels)) / (0.5 * autoencoder.posterior(pixels).logvar_BCTHW).exp()
    assert 0.3 < float(spread.std()) / 0.476986 < 2
