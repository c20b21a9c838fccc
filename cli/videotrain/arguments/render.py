"""`videotrain render`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_pod_policy


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "render",
        help="print the Kubernetes objects that would be created",
        description="Print the Kubernetes objects that the operator would create for a manifest on an empty cluster.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    parser.add_argument("--json", action="store_true", help="a Kubernetes List as JSON instead of YAML documents")
    add_pod_policy(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.render import print_objects

    return print_objects(options.file, options.pod_policy, as_json=options.json)
