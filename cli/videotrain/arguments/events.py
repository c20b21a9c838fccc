"""`videotrain events`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_run_choice, check_run_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "events",
        help="show what was told about a run",
        description="Show what was told about a run, oldest first. An API server forgets that after an hour.",
    )
    add_run_choice(parser)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how (default table)")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("cluster"):
        from videotrain.commands.describe import print_events

    where = cluster_choice(options)
    return print_events(options.run, where, options.workdir, options.output)
