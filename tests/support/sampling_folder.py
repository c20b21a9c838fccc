"""Tiny models with weights, a picture and a video in a folder, and the flags of the `sample` command that use them."""

import json
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize

TEXT = TextEncoderSpec(context_dim=16, pooled_dim=8, max_tokens=48)
AUTOENCODER = AUTOENCODERS["dc-ae-tiny"].model_copy(update={"scaling_factor": 1.0})
MODEL = TRANSFORMERS["mmdit-tiny-dcae"]


def make_folder(folder):
    """Fill it and return it."""
    model = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(model, 1)
    torch.nn.init.normal_(model.cond_in.weight, std=0.3)
    autoencoder = build_autoencoder(AUTOENCODER)
    initialize(autoencoder, 2)
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file(autoencoder.state_dict(), folder / "autoencoder.safetensors")
    config = {"model": MODEL, "autoencoder": AUTOENCODER, "textEncoder": TEXT}
    (folder / "models.json").write_text(json.dumps({name: spec.to_wire() for name, spec in config.items()}))
    ramp = np.arange(96, dtype=np.int64)
    frames = np.stack([(ramp[:, None] + 2 * ramp[None] + 3 * t)[..., None] % 256 for t in range(80)])
    frames = np.repeat(frames, 3, axis=-1).astype(np.uint8)
    write_mp4(list(frames), folder / "clip.mp4", Fraction(24))
    Image.fromarray(frames[0]).save(folder / "picture.png")
    Image.fromarray(frames[60]).save(folder / "last.png")
    return folder


def flags_of(folder, *more):
    """The command line for one 8-frame video of 64 pixels in two steps, with what is given in `more`."""
    flags = ["sample", "--config", folder / "models.json", "--model-weights", folder / "model.safetensors"]
    flags += ["--autoencoder-weights", folder / "autoencoder.safetensors", "--resolution", "64px", "--aspect", "1:1"]
    flags += ["--num-frames", 8, "--steps", 2, "--device", "cpu", "--output", folder / "out"]
    return [str(flag) for flag in (*flags, *more)]
