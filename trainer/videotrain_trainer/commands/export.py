"""`videotrain-trainer export`: transformer and autoencoder as others read them."""

from __future__ import annotations

import argparse
import sys

HELP = "write transformer and autoencoder as a diffusers-style folder, or with the names of Open-Sora 2.0"
LAYOUTS = ("diffusers", "open-sora-v2")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "With --to diffusers: a folder with model_index.json, transformer/, vae/ and scheduler/, from which diffusers' "
        "own classes load the transformer and a HunyuanVideo VAE. With --to open-sora-v2: a file of each under its "
        "published name. Weights are read tensor by tensor."
    )
    parser.add_argument("folder", help="folder to write")
    parser.add_argument("--to", choices=LAYOUTS, default=LAYOUTS[0], help="layout to write (default diffusers)")
    parser.add_argument("--transformer", required=True, help="weights in any layout; a path or s3:// URI")
    parser.add_argument("--autoencoder", required=True, help="weights in any layout; a path or s3:// URI")
    parser.add_argument("--transformer-preset", help="model of the transformer's weights; default: what they describe")
    parser.add_argument("--autoencoder-preset", help="model of the autoencoder's weights; default: what they describe")
    parser.add_argument("--shard-size", default="4GB", help="most bytes of a weight file of a diffusers folder (4GB)")


def run(options: argparse.Namespace) -> int:
    """Export.

    Raises:
        ConfigError: weights do not fit, or the folder holds an export already.
    """
    from videotrain_trainer import models
    from videotrain_trainer.commands.convert import parse_bytes
    from videotrain_trainer.models.diffusers_folder import Component
    from videotrain_trainer.models.open_sora_folder import export_open_sora

    if options.to == "open-sora-v2":
        presets = (options.transformer_preset, options.autoencoder_preset)
        written = export_open_sora(options.folder, options.transformer, options.autoencoder, *presets)
        sys.stdout.write(f"{options.folder}: {', '.join(written)}\n")
        return 0
    models.export_diffusers(
        options.folder,
        Component.of(options.transformer, options.transformer_preset),
        Component.of(options.autoencoder, options.autoencoder_preset),
        shard_bytes=parse_bytes(options.shard_size, "--shard-size"),
    )
    sys.stdout.write(f"{options.folder}: model_index.json, transformer/, vae/, scheduler/\n")
    return 0
