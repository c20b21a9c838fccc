"""The command and `models.sample` draw the same pixels, from wherever the picture comes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.sampling_folder import TEXT, make_folder

from videotrain_api.config.presets import TRANSFORMERS, complete_autoencoder
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_trainer import cli, models
from videotrain_trainer.networks.build import build_transformer, initialize
from videotrain_trainer.sampling.references import first_frame

SIZE, FRAMES = 64, 9
HUNYUAN = complete_autoencoder(AutoencoderSpec(preset="hunyuan-vae-tiny", scaling_factor=0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The usual folder with a HunyuanVideo VAE, whose latents are sampled."""
    folder = make_folder(tmp_path_factory.mktemp("models"))
    spec = TRANSFORMERS["mmdit-tiny"]
    transformer = build_transformer(spec, HUNYUAN, TEXT)
    initialize(transformer, 1)
    torch.nn.init.normal_(transformer.cond_in.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    save_file(transformer.state_dict(), folder / "model.safetensors")
    save_file(models.build(HUNYUAN, seed=2).state_dict(), folder / "autoencoder.safetensors")
    config = {"model": spec, "autoencoder": HUNYUAN, "textEncoder": TEXT}
    (folder / "models.json").write_text(json.dumps({name: part.to_wire() for name, part in config.items()}))
    return folder


def drawn_by_command(folder, out, *flags):
    arguments = ["sample", "--config", folder / "models.json", "--model-weights", folder / "model.safetensors"]
    arguments += ["--autoencoder-weights", folder / "autoencoder.safetensors", "--device", "cpu", "--format", "png"]
    arguments += ["--resolution", f"{SIZE}px", "--aspect", "1:1", "--num-frames", FRAMES, "--steps", 2, "--seed", 7]
    arguments += ["--prompt", "A cat.", "--output", out, *flags]
    assert cli.main([str(argument) for argument in arguments]) == 0
    pages = [np.array(Image.open(path)) for path in sorted((out / "0001").glob("*.png"))]
    return torch.from_numpy(np.stack(pages))


def drawn_by_python(folder, kind, image=None, last=None, **options):
    config = build_transformer(TRANSFORMERS["mmdit-tiny"], HUNYUAN, TEXT).config
    transformer = models.load(folder / "model.safetensors", model=config)
    autoencoder = models.load(folder / "autoencoder.safetensors", model=HUNYUAN)
    first, second = (path and first_frame(path.read_bytes(), path.name, (SIZE, SIZE)) for path in (image, last))
    chosen = models.SampleOptions(height=SIZE, width=SIZE, frames=FRAMES, steps=2, seed=7, condition=kind, **options)
    parts = transformer, autoencoder, models.load_text_encoder(TEXT)
    return models.sample(*parts, "A cat.", chosen, reference_CFHW=first, last_CFHW=second)


@pytest.mark.parametrize("kind", ["t2v", "i2v_head", "i2v_tail", "i2v_loop", "i2v_loop with a last picture"])
def test_the_same_pixels_come_out_of_both(kind, folder, tmp_path):
    kind, _, two = kind.partition(" ")
    image = None if kind == "t2v" else folder / "picture.png"
    last = folder / "last.png" if two else None
    flags = [] if image is None else ["--image", image, "--condition", kind]
    flags += [] if last is None else ["--last-image", last]
    assert torch.equal(drawn_by_command(folder, tmp_path / "out", *flags), drawn_by_python(folder, kind, image, last))


def test_a_picture_in_another_folder_gives_the_same_video(folder, tmp_path):
    copy = tmp_path / "elsewhere.png"
    shutil.copyfile(folder / "picture.png", copy)
    first, second = (
        drawn_by_command(folder, tmp_path / name, "--image", path)
        for name, path in (("a", folder / "picture.png"), ("b", copy))
    )
    assert torch.equal(first, second)


def test_the_mode_of_the_distribution_is_another_drawing(folder):
    sampled, mode = (
        drawn_by_python(folder, "i2v_head", folder / "picture.png", posterior=use) for use in ("sample", "mode")
    )
    assert not torch.equal(sampled, mode)
