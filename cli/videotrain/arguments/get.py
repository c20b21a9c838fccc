"""`videotrain get`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_run_choice, cluster_choice
from videotrain.errors import UsageError
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "get",
        help="show runs of a cluster, or a local run",
        description="Show the runs of a cluster in a table, one of them with all that its status tells, or the run of "
        "a working directory of `local`, also while it goes on.",
    )
    add_run_choice(parser, several=True)
    form = parser.add_mutually_exclusive_group()
    outputs = ("table", "json", "yaml", "name")
    form.add_argument("-o", "--output", choices=outputs, default="table", help="how to print (default table)")
    form.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    if options.workdir is not None:
        from videotrain.commands.get import print_state

        if options.runs:
            raise UsageError("name runs of a cluster, or --workdir, not both")
        return print_state(options.workdir, options.output)
    with brought_by("cluster"):
        from videotrain.commands.cluster_get import print_runs

    where = cluster_choice(options)
    return print_runs(options.runs, where, options.output)
