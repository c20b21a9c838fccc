"""`videotrain cluster up`, `down` and `status`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_device
from videotrain.arguments.types import count, folder
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "cluster",
        help="a real Kubernetes on this machine, to try the operator on",
        description="A real Kubernetes control plane on this machine, with nodes whose pods are processes and an "
        "S3 object store. Objects and data stay in the directory; starting again there goes on with them.",
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    description = "Start the cluster and show it until Ctrl-C ends it. One that runs is left so, and told."
    up = verbs.add_parser("up", help="start it", description=description)
    up.add_argument("--nodes", type=count, metavar="N", help="number of nodes (default 2)")
    up.add_argument("--gpus-per-node", type=count, metavar="K", help="GPUs that a node offers (default 8)")
    add_device(up, "pods")
    up.add_argument("--detach", action="store_true", help="come back when it is ready, and leave it running")
    up.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    up.set_defaults(handler=_up)
    down = verbs.add_parser("down", help="end it", description="End the cluster; its objects and data stay.")
    down.set_defaults(handler=_down)
    status = verbs.add_parser("status", help="show it", description="Show the cluster; exit code 1 if none is ready.")
    status.add_argument("--json", action="store_true", help="machine-readable output")
    status.set_defaults(handler=_status)
    for verb in (up, down, status):
        verb.add_argument(
            "--directory",
            type=folder,
            metavar="D",
            help="where it lives (default: in the user's state)",
        )


def _up(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import ClusterOptions, default_directory, up

    return up(
        ClusterOptions(
            directory=options.directory or default_directory(),
            nodes=options.nodes,
            gpus_per_node=options.gpus_per_node,
            device=options.device,
            detach=options.detach,
            child=options.child,
        )
    )


def _down(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import default_directory, down

    return down(options.directory or default_directory())


def _status(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import default_directory, status

    return status(options.directory or default_directory(), as_json=options.json)
