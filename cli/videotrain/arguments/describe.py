"""`videotrain describe`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_run_choice, check_run_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "describe",
        help="show all that is known of a run",
        description="Show all that is known of a run: its status, its pods and its events.",
    )
    add_run_choice(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("cluster"):
        from videotrain.commands.describe import describe

    where = cluster_choice(options)
    return describe(options.run, where, options.workdir)
