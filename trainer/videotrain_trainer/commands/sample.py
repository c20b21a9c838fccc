"""`videotrain-trainer sample`: pictures and videos from prompts; started again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from videotrain_api.resource.sampling import (
    DISTILLED_GUIDANCE,
    FPS,
    IMAGE_GUIDANCE,
    MOTION_SCORE,
    SEED,
    SEEDS,
    STEPS,
    TEXT_GUIDANCE,
)
from videotrain_api.resource.stages import PromptStyle
from videotrain_trainer.commands.prompts_file import KINDS

HELP = "draw pictures and videos from prompts"
FORMATS = ("mp4", "gif", "png")
STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    _model_flags(parser.add_argument_group("models"))
    _prompt_flags(parser.add_argument_group("prompts and references"))
    _drawing_flags(parser.add_argument_group("drawing"))
    _image_flags(parser.add_argument_group("first frame by an image model"))
    _output_flags(parser.add_argument_group("output and memory"))


def _model_flags(group: Any) -> None:
    group.add_argument("--config", type=Path, help="JSON with model, autoencoder, textEncoder and storage, as in a run")
    group.add_argument("--model", metavar="PRESET", help="transformer, such as mmdit-11b; over the configuration's")
    group.add_argument("--model-weights", metavar="PATH", help="safetensors file, index, folder or URI")
    group.add_argument("--autoencoder", metavar="PRESET", help="video autoencoder; by the model's preset if unset")
    group.add_argument("--autoencoder-weights", metavar="PATH")
    group.add_argument("--text-encoder", metavar="PATH", help="folder or URI with T5 and CLIP")


def _prompt_flags(group: Any) -> None:
    group.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given more than once")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line, or CSV with a header")
    group.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    group.add_argument("--image", metavar="PATH", help="reference picture (first frame unless --condition says else)")
    group.add_argument("--last-image", metavar="PATH", help="last frame of i2v_loop")
    group.add_argument("--video", metavar="PATH", help="reference video of the v2v kinds")
    group.add_argument("--condition", choices=KINDS, help="how references are used; by what is given if unset")
    group.add_argument("--fps", type=_positive_float, default=float(FPS), help="of files and suffix (%(default)g)")
    group.add_argument("--motion", type=_scale, default=float(MOTION_SCORE), help="score of the suffix (%(default)g)")
    group.add_argument("--prompt-style", choices=STYLES, default="fps-motion", help="what follows the prompt")


def _drawing_flags(group: Any) -> None:
    group.add_argument("--resolution", default="256px", metavar="NNNpx", help="area class (256px)")
    group.add_argument("--aspect", default="16:9", metavar="W:H", help="shape (16:9)")
    group.add_argument("--num-frames", type=_positive, default=None, help="default: 129 or 128, by the autoencoder")
    group.add_argument("--steps", type=_positive, default=STEPS, help="Euler steps (%(default)s)")
    usual = f"{TEXT_GUIDANCE:g}, or {DISTILLED_GUIDANCE:g} as the input of a distilled model"
    group.add_argument("--guidance", type=_scale, help=f"scale for the text ({usual})")
    group.add_argument("--image-guidance", type=_scale, default=IMAGE_GUIDANCE, help="scale for images (%(default)g)")
    group.add_argument("--no-oscillation", action="store_true", help="keep both scales in every step")
    group.add_argument("--no-dynamic-guidance", action="store_true", help="one image scale for all frames and steps")
    group.add_argument("--shift", type=_positive_float, help="alpha of the time shift; by the size if unset")
    group.add_argument("--seed", type=_seed, default=SEED, help="of the first video of a prompt (%(default)s)")
    group.add_argument("--n", type=_positive, default=1, help="videos per prompt, with seeds that follow each other")
    group.add_argument("--best-of", type=_positive, default=1, metavar="N", help="candidates per video; keep the best")
    group.add_argument("--scorer", help="steadiness, motion, sharpness, or package.module:function")


def _image_flags(group: Any) -> None:
    group.add_argument("--image-model", metavar="PRESET", help="such as flux-dev: draw the first frame, then the video")
    group.add_argument("--image-model-weights", metavar="PATH")
    group.add_argument("--image-autoencoder", metavar="PRESET", default="flux-vae", help="FLUX.1's if unset")
    group.add_argument("--image-autoencoder-weights", metavar="PATH")
    group.add_argument("--image-resolution", default="768px", metavar="NNNpx", help="area class of the picture (768px)")
    group.add_argument("--image-steps", type=_positive, default=STEPS, help="Euler steps of the picture (%(default)s)")
    group.add_argument(
        "--image-model-guidance", type=_scale, default=DISTILLED_GUIDANCE, help="distilled guidance value (4)"
    )


def _output_flags(group: Any) -> None:
    group.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    group.add_argument("--format", choices=FORMATS, help="mp4 for videos and png for pictures if unset")
    group.add_argument("--json", action="store_true", help="one JSON document per video on standard output")
    group.add_argument("--device", default=None, help="such as cuda:0 or cpu; a GPU if there is one")
    group.add_argument("--offload", action="store_true", help="keep on the device only the model in use")
    group.add_argument("--tile-pixels", type=_positive, help="code pictures in tiles of this side")
    group.add_argument("--tile-frames", type=_positive, help="code clips in tiles of so many frames")


def run(options: argparse.Namespace) -> int:
    """Draw what the flags ask for; what is complete already is kept.

    Raises:
        TrainerError: something that is asked for cannot be drawn.
    """
    # Imported here, for it takes seconds and torch, which the agent must do without.
    from videotrain_trainer.commands.sample_run import draw

    return draw(options)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: whole numbers from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: whole numbers from 0 to {SEEDS - 1}")
    return int(text)


def _positive_float(text: str) -> float:
    value = _scale(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0")
    return value


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number") from error
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of 0 or more")
    return value
