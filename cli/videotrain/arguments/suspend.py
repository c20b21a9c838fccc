"""`videotrain suspend`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_run_choice, check_run_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "suspend",
        help="let a run save and release its nodes",
        description="Let a run save a checkpoint and release its nodes. `videotrain resume` lets it go on.",
    )
    add_run_choice(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("cluster"):
        from videotrain.commands.change import set_suspended, suspend_local

    if options.workdir is not None:
        return suspend_local(options.workdir)
    where = cluster_choice(options)
    return set_suspended(options.run, where, suspended=True)
