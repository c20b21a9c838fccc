"""`videotrain export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_results
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write the models of a finished run in a published layout",
        description="Write transformer and autoencoder of a finished run as others read them: a folder in diffusers' "
        "form, or files with the names and tensor names of Open-Sora 2.0.",
    )
    add_results(parser)
    parser.add_argument("--to", choices=("diffusers", "open-sora-v2"), required=True, help="layout to write")
    parser.add_argument("target", type=Path, metavar="DIR", help="folder to write; made if it is missing")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.export import export

    return export(options.workdir, options.results, options.to, options.target)
