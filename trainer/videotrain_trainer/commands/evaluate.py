"""`videotrain-trainer evaluate`: measures of autoencoders and videos, VBench, and people's preference."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HELP = "measure autoencoders and videos, and ask people which they prefer"
SOURCE = "folder of videos or prefix of a curated set; a path, file:// or s3:// URI"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    _autoencoder(kinds.add_parser("autoencoder", help="PSNR, SSIM and LPIPS of reconstructions"))
    _videos(kinds.add_parser("videos", help="flicker, motion and sharpness; with --reference PSNR and SSIM"))
    _vbench(kinds.add_parser("vbench", help="VBench's dimensions, where package and weights are installed"))
    _compare(kinds.add_parser("compare", help="a blinded page for human preference"))
    _win_rate(kinds.add_parser("win-rate", help="win rates with confidence intervals from the page's answers"))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _autoencoder(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("source", help=f"{SOURCE}, or of an encoded set (its latents are decoded)")
    parser.add_argument("--weights", required=True, metavar="PATH", help="safetensors file, index, folder or URI")
    parser.add_argument("--autoencoder", metavar="PRESET", help="such as hunyuan-vae; default: what the file describes")
    parser.add_argument("--clips", metavar="PATH", help="of an encoded set: the curated set it was made from")
    parser.add_argument("--size", type=_size, default=(256, 256), metavar="WxH", help="centre crop, pixels (256x256)")
    parser.add_argument("--frames", type=_positive, default=32, help="first frames of each video (32)")
    parser.add_argument("--limit", type=_positive, help="the first so many videos")
    parser.add_argument("--lpips", metavar="FOLDER", help="published weights of VGG16 and LPIPS; without: no LPIPS")
    parser.add_argument("--device", help="cuda or cpu; default: cuda if there is one")


def _videos(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("source", help="folder of videos; a path, file:// or s3:// URI")
    parser.add_argument("--reference", metavar="FOLDER", help="videos of the same names to compare with")


def _vbench(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("videos", type=Path, help="folder of mp4 files")
    parser.add_argument("--weights", type=Path, required=True, help="VBench's cache folder with its models")
    parser.add_argument("--output", type=Path, default=Path("vbench-results"), help="VBench's own result files")
    parser.add_argument("--dimension", action="append", metavar="NAME", help="may be repeated; default: all possible")
    parser.add_argument(
        "--suite", action="store_true", help="the videos are of VBench's own prompts, named as it demands"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON: prompt by file name")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")


def _compare(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("first", metavar="NAME=FOLDER", help="a model and its videos")
    parser.add_argument("second", metavar="NAME=FOLDER", help="the other; pairs have equal file names")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="what raters get")
    parser.add_argument("--key", type=Path, metavar="FILE", help="who is on which side; default: FOLDER.key.json")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON: prompt by name; default: the files' metadata"
    )
    parser.add_argument("--seed", type=int, default=42, help="of order and sides (42)")


def _win_rate(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("answers", type=Path, nargs="+", help="answers files of the raters")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="key of the comparison")


def run(options: argparse.Namespace) -> int:
    """Run one kind; the exit code."""
    # Imported here, for it takes seconds and torch, which the agent must do without.
    from videotrain_trainer.commands import evaluate_run as command

    return command.run(options)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `WIDTHxHEIGHT`."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT in pixels, such as 256x256")
    return int(match[2]), int(match[1])
