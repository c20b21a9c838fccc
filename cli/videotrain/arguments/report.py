"""`videotrain report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_run_choice, check_run_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "report",
        help="write the page about a run",
        description="Write the page about a run, from its status and what it stored: stages, losses, bill, restarts, "
        "drawn videos, and why it failed if it did. Works while the run goes on.",
    )
    add_run_choice(parser)
    parser.add_argument(
        "--watch", action="store_true", help="write it every 10 s until the run rests; it reloads itself"
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="folder to write, of a cluster's run (default RUN-report)"
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of the object store, if pods reach it by another one")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("local"):
        from videotrain.commands.report import report_local, report_of_cluster

    if options.workdir is not None:
        return report_local(options.workdir, watch=options.watch)
    where = cluster_choice(options)
    return report_of_cluster(options.run, where, options.to, options.endpoint_url, watch=options.watch)
