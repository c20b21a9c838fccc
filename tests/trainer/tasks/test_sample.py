import json
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import save_file
from support.sampling import AUTOENCODER, MODEL, TEXT, Drain, config_of, context_of, draw_as_rank

from videotrain_api.records import CheckpointRecord, StartedRecord, StepRecord
from videotrain_api.resource.stages import Prompt
from videotrain_api.storage.artifacts import VideosIndex
from videotrain_trainer.checksums import unsealed_json
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.sampling.draw import noise_of
from videotrain_trainer.sampling.outputs import read_metadata
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import sample
from videotrain_trainer.tasks.sample_draw import StageSampler
from videotrain_trainer.tasks.sample_plan import plan_drawings

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def folder(tmp_path):
    """Weights of tiny models, one clip with its manifest, and a picture."""
    model = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(model, 1)
    torch.nn.init.normal_(model.cond_in.weight, std=0.1)
    autoencoder = build_autoencoder(AUTOENCODER)
    initialize(autoencoder, 2)
    (tmp_path / "run/clips/clips").mkdir(parents=True)
    (tmp_path / "run/train/weights").mkdir(parents=True)
    save_file(model.state_dict(), tmp_path / "run/train/weights/model.safetensors")
    save_file(autoencoder.state_dict(), tmp_path / "autoencoder.safetensors")
    frames = np.random.default_rng(1).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    write_mp4(list(frames), tmp_path / "run/clips/clips/abc.mp4", Fraction(24))
    row = dict.fromkeys(CLIP_SCHEMA.names) | {"uid": "abc", "uri": "clips/abc.mp4", "caption": "Noise.", "kept": True}
    (tmp_path / "run/clips/manifest.parquet").write_bytes(to_parquet([row], CLIP_SCHEMA))
    Image.fromarray(frames[0]).save(tmp_path / "picture.png")
    (tmp_path / "scratch").mkdir()
    return tmp_path


def videos_in(folder):
    return sorted((folder / "run/draw/videos").glob("*.mp4"))


def test_every_video_is_written_with_its_settings_and_listed_in_the_index(folder):
    config = config_of(folder)
    context = context_of(folder, config)
    assert sample.run(context) == "completed"
    index = VideosIndex.from_wire(unsealed_json((folder / "run/draw/videos.json").read_bytes()))
    assert [video.number for video in index.videos] == [1, 2, 3]
    assert [video.condition for video in index.videos] == ["t2v", "i2v_loop", "i2v_head"]
    assert [video.prompt for video in index.videos] == ["A rabbit.", "A street.", "Noise."]
    assert index.videos[2].reference_clip == f"file://{folder}/run/clips/clips/abc.mp4"
    for video, path in zip(index.videos, videos_in(folder), strict=True):
        assert video.uri == f"file://{path}"
        frames = [frame for _, frame in decode(path)]
        assert len(frames) == 8
        assert frames[0].shape == (64, 64, 3)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        comment = read_metadata(path)
        assert comment["videotrain"] == video.to_wire()
        assert comment["videotrain"]["settings"]["configHash"] == config.hash()
        assert comment["text"] == f"{video.prompt} 12 FPS, 4 motion score."
    assert list((folder / "scratch").iterdir()) == []


def test_records_tell_rounds_as_steps_and_uploaded_videos_as_saved(folder):
    context = context_of(folder, config_of(folder))
    sample.run(context)
    started, *rest = context.records
    assert isinstance(started, StartedRecord)
    assert (started.resumed_step, started.total_steps) == (0, 3)
    steps = [record for record in rest if isinstance(record, StepRecord)]
    saved = [record for record in rest if isinstance(record, CheckpointRecord)]
    assert [record.step for record in steps] == [record.step for record in saved] == [1, 2, 3]
    assert steps[0].tokens == 2 * 2 * 2 + 48
    assert steps[0].bucket == "64px/8f/1:1"
    assert steps[0].model_flops > 0
    assert [record.bytes for record in saved] == [path.stat().st_size for path in videos_in(folder)]


def test_a_drained_stage_keeps_its_videos_and_goes_on_after_them(folder):
    config = config_of(folder)
    assert sample.run(context_of(folder, config, drain=Drain(rounds=1))) == "drained"
    assert len(videos_in(folder)) == 1
    assert not (folder / "run/draw/videos.json").exists()
    before = videos_in(folder)[0].stat().st_mtime_ns
    context = context_of(folder, config)
    assert sample.run(context) == "completed"
    assert context.records[0].resumed_step == 1
    assert videos_in(folder)[0].stat().st_mtime_ns == before
    assert len(videos_in(folder)) == 3


def test_videos_of_another_configuration_or_damaged_ones_are_drawn_again(folder):
    sample.run(context_of(folder, config_of(folder)))
    videos_in(folder)[1].write_bytes(b"no video")
    again = context_of(folder, config_of(folder))
    sample.run(again)
    assert again.records[0].resumed_step == 2
    other = context_of(folder, config_of(folder, sampling_steps=1))
    sample.run(other)
    assert other.records[0].resumed_step == 0


@pytest.mark.numeric
def test_the_same_configuration_draws_the_same_pixels(folder):
    config = config_of(folder)
    store = ObjectStore.for_storage(config.storage)
    sampler = StageSampler(config, store, torch.device("cpu"), folder)
    drawing = plan_drawings(config, store, conditioned=True)[2]
    first = sampler.draw(drawing)
    torch.manual_seed(5)
    assert torch.equal(first, sampler.draw(drawing))
    other = replace(drawing, video=drawing.video.model_copy(update={"seed": 10}))
    assert not torch.equal(first, sampler.draw(other))


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(noise_of(1, (4, 2, 3)), noise_of(1, (4, 2, 3)))
    assert not torch.equal(noise_of(1, (4, 2, 3)), noise_of(2, (4, 2, 3)))


def test_clips_give_no_first_frame_to_a_model_that_was_never_trained_with_one(folder):
    from safetensors.torch import load_file

    path = folder / "run/train/weights/model.safetensors"
    save_file(load_file(path) | {"cond_in.weight": torch.zeros(64, 65)}, path)
    config = config_of(folder)
    store = ObjectStore.for_storage(config.storage)
    sampler = StageSampler(config, store, torch.device("cpu"), folder)
    assert not sampler.conditioned
    assert plan_drawings(config, store, sampler.conditioned)[2].video.condition == "t2v"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 4}, r"sample.frames: 4: this autoencoder decodes to 1 or 4k with k > 1 frames"),
        ({"frames": 9}, r"sample.frames: 9"),
        ({"resolution": "96px", "aspect_ratio": "7:3"}, r"sample.aspectRatio: unknown aspect ratio '7:3'"),
        (
            {"prompts": [Prompt(text="a", condition="v2v_head", image="s3://b/x")]},
            r"prompts\[0\]: condition 'v2v_head'",
        ),
        ({"prompts": [Prompt(text="a", condition="i2v_head")]}, r"prompts\[0\]: condition 'i2v_head' and image None"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused_with_their_field(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        sample.run(context_of(folder, config_of(folder, **changes)))


def test_missing_weights_are_refused_by_name(folder):
    config = config_of(folder)
    without = config.model_copy(update={"paths": config.paths.model_copy(update={"model_weights": None})})
    with pytest.raises(ConfigError, match=r"paths\.modelWeights: not set"):
        sample.run(context_of(folder, without))


@pytest.mark.numeric
def test_a_distilled_model_has_its_own_usual_guidance(folder):
    config = config_of(folder, prompts=[Prompt(text="a")], from_dataset=0)
    distilled = config.model_copy(update={"model": config.model.model_copy(update={"guidance_embed": True})})
    given = config_of(folder, prompts=[Prompt(text="a")], from_dataset=0, text_guidance=2.0)
    store = ObjectStore.for_storage(config.storage)
    found = [plan_drawings(each, store, conditioned=True)[0] for each in (config, distilled, given)]
    assert [drawing.video.settings["textGuidance"] for drawing in found] == [7.5, 4.0, 2.0]


@pytest.mark.slow
def test_two_ranks_share_the_videos_and_draw_what_one_rank_draws(folder):
    sample.run(context_of(folder, config_of(folder)))
    alone = [pixels_of(path) for path in videos_in(folder)]
    for path in videos_in(folder):
        path.unlink()
    (folder / "run/draw/videos.json").unlink()
    mp.spawn(draw_as_rank, args=(folder, _free_port()), nprocs=2)
    for path, expected in zip(videos_in(folder), alone, strict=True):
        # Pixels are equal before they are encoded; x264 itself may choose other blocks from one run to the next.
        assert np.abs(pixels_of(path) - expected).mean() < 2
    assert (folder / "run/draw/videos.json").exists()
    assert [json.loads((folder / f"steps-{rank}.json").read_text()) for rank in range(2)] == [[2, 3], [2, 3]]


def pixels_of(path):
    return np.stack([frame for _, frame in decode(path)]).astype(int)


def _free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
