"""`videotrain serve`."""

from __future__ import annotations

import argparse

from videotrain.arguments.types import folder
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="serve the object store of a local run",
        description="Serve the object store of a local run until Ctrl-C, with everything that the run wrote: clips, "
        "encoded sets, checkpoints, weights. Prints the address and the keys as shell commands. While `videotrain "
        "local` runs there, it serves the same.",
    )
    parser.add_argument("workdir", type=folder, metavar="W", help="working directory of `local`")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.serve import serve

    return serve(options.workdir)
