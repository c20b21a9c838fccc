"""`videotrain-trainer export`: transformer and autoencoder to a folder in diffusers' form."""

from __future__ import annotations

import argparse
import sys

HELP = "write transformer, autoencoder and scheduler as a diffusers-style folder"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Write a folder with model_index.json, transformer/, vae/ and scheduler/. diffusers' own classes load the "
        "transformer and a HunyuanVideo VAE from it. Weights are read tensor by tensor."
    )
    parser.add_argument("folder", help="folder to write")
    parser.add_argument("--transformer", required=True, help="weights in any layout; a path or s3:// URI")
    parser.add_argument("--autoencoder", required=True, help="weights in any layout; a path or s3:// URI")
    parser.add_argument("--transformer-preset", help="model of the transformer's weights; default: what they describe")
    parser.add_argument("--autoencoder-preset", help="model of the autoencoder's weights; default: what they describe")
    parser.add_argument("--shard-size", default="4GB", help="most bytes of a weight file (default 4GB)")


def run(options: argparse.Namespace) -> int:
    """Export.

    Raises:
        ConfigError: weights do not fit, or the folder holds a pipeline already.
    """
    from videotrain_trainer import models
    from videotrain_trainer.commands.convert import parse_bytes
    from videotrain_trainer.models.diffusers_folder import Component

    models.export_diffusers(
        options.folder,
        Component.of(options.transformer, options.transformer_preset),
        Component.of(options.autoencoder, options.autoencoder_preset),
        shard_bytes=parse_bytes(options.shard_size, "--shard-size"),
    )
    sys.stdout.write(f"{options.folder}: model_index.json, transformer/, vae/, scheduler/\n")
    return 0
