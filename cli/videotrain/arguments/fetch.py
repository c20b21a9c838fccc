"""`videotrain fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_cluster_choice, cluster_choice
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "fetch",
        help="bring the results of a run in a cluster here",
        description="Bring what a run in a cluster made here: final weights, adapter, drawn videos, bill and manifest. "
        "What is here already is not fetched again. Takes the AWS keys of this account, and without any the Secret "
        "that the run names.",
    )
    parser.add_argument("run", metavar="RUN", help="NAME, or NAMESPACE/NAME")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder to write (default: the name of the run)")
    parser.add_argument("--endpoint-url", metavar="URL", help="of the object store, if pods reach it by another one")
    add_cluster_choice(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.fetch import fetch

    where = cluster_choice(options)
    return fetch(options.run, where, options.to, options.endpoint_url)
