"""`videotrain top`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_cluster_choice, cluster_choice
from videotrain.arguments.types import amount
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "top",
        help="the runs of a cluster, live",
        description="Show the runs of a cluster, live: phase, step, rate, MFU, goodput, spend, forecast and alerts.",
    )
    add_cluster_choice(parser)
    parser.add_argument("--every", type=amount, default=2.0, metavar="S", help="seconds between looks (default 2)")
    parser.add_argument("--once", action="store_true", help="print the table once")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="json: once, for machines")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.top import TopOptions, top

    where = cluster_choice(options)
    return top(TopOptions(where=where, seconds=options.every, once=options.once, json=options.output == "json"))
