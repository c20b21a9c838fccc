"""`videotrain compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_cluster_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="two runs side by side",
        description="Compare two runs: the fields in which their manifests differ, their plans, bills and curves. "
        "Each is a working directory of `local`, or NAME or NAMESPACE/NAME of a run in the cluster.",
    )
    parser.add_argument("a", metavar="A", help="working directory, NAME or NAMESPACE/NAME")
    parser.add_argument("b", metavar="B", help="the other one")
    add_cluster_choice(parser)
    parser.add_argument("--page", type=Path, metavar="OUT.html", help="write a page with their curves, too")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.compare import compare

    where = cluster_choice(options)
    return compare((options.a, options.b), where, options.page, as_json=options.json)
