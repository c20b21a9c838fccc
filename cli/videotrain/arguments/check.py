"""`videotrain check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_pod_policy


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with a manifest",
        description="Check a manifest by the rules of the cluster, and print every problem. Exit code 0 "
        "if it can be accepted, 2 if not.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    parser.add_argument("--json", action="store_true", help="machine-readable output, also for a refused manifest")
    add_pod_policy(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.check import check_manifest

    return check_manifest(options.file, options.pod_policy, as_json=options.json)
