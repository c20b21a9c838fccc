"""`videotrain resume`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_cluster_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "resume",
        help="let a suspended run go on",
        description="Let a suspended run of a cluster go on. A local one goes on by the command that began it.",
    )
    parser.add_argument("run", metavar="RUN", help="NAME or NAMESPACE/NAME in the cluster")
    add_cluster_choice(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.change import set_suspended

    where = cluster_choice(options)
    return set_suspended(options.run, where, suspended=False)
