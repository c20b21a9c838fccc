"""`videotrain-trainer convert`: weights from one published layout to another."""

from __future__ import annotations

import argparse
import re
import sys

from videotrain_trainer.errors import ConfigError

HELP = "write weights in another published layout, streaming and strict"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    layouts = "open-sora-v2, flux-dev, hunyuan-vae, open-sora-dc-ae, diffusers, image-dc-ae, diffusers-image-dc-ae"
    parser.description = (
        "Write weights in another published layout. Every tensor that is missing, left over or of another shape is "
        f"listed, and then nothing is written. Memory is bounded by the largest tensors. Layouts: {layouts}."
    )
    parser.add_argument("source", help="file, index or folder of safetensors; a path or s3:// URI")
    parser.add_argument("destination", help="*.safetensors for one file, else a folder for shards; a path or s3:// URI")
    parser.add_argument("--from", dest="from_layout", required=True, metavar="LAYOUT", help="layout of the source")
    parser.add_argument("--to", dest="to_layout", required=True, metavar="LAYOUT", help="layout to write")
    parser.add_argument(
        "--preset", help="model that the source must hold, such as mmdit-11b; default: what its tensors describe"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="cast to it; default: as stored")
    parser.add_argument("--shard-size", default="4GB", help="most bytes of a file in a folder (default 4GB)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Convert.

    Raises:
        ConfigError: the source does not fit its layout or the model, or an option is wrong.
    """
    import torch

    from videotrain_trainer.commands.progress import ProgressBar, human_bytes
    from videotrain_trainer.models.presets import config_of
    from videotrain_trainer.networks.weights import Destination, convert

    dtype = getattr(torch, DTYPES[options.dtype]) if options.dtype else None
    done = convert(
        options.source,
        Destination(target=options.destination, shard_bytes=parse_bytes(options.shard_size, "--shard-size")),
        options.from_layout,
        options.to_layout,
        config=config_of(options.preset) if options.preset else None,
        dtype=dtype,
        progress=None if options.quiet else ProgressBar("converting"),
    )
    sys.stdout.write(
        f"{options.destination}: {done.tensors} tensors, {done.parameters:,} parameters, {human_bytes(done.bytes)} in "
        f"{len(done.files)} file{'s' if len(done.files) > 1 else ''}, layout {options.to_layout}\n"
    )
    return 0


def parse_bytes(text: str, option: str) -> int:
    """A number of bytes such as `500MB` or `4GiB`.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if (
        found is None
        or found[2].upper() not in _UNITS
        or not (count := int(float(found[1]) * _UNITS[found[2].upper()]))
    ):
        raise ConfigError(
            f"{option} {text!r}: not a size; write a positive number and {', '.join(filter(None, _UNITS))}"
        )
    return count
