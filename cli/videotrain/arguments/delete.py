"""`videotrain delete`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_cluster_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "delete",
        help="delete runs of a cluster",
        description="Delete runs of a cluster with their pods. What they stored stays, and so do their bills.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="NAME or NAMESPACE/NAME in the cluster")
    add_cluster_choice(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.change import delete

    where = cluster_choice(options)
    return delete(options.runs, where)
