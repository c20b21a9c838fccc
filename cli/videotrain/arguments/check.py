"""`videotrain check`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_manifests, add_pod_policy, each_manifest


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with a manifest",
        description="Check a manifest by the rules of the cluster, and print every problem. Exit code 0 "
        "if it can be accepted, 2 if not.",
    )
    add_manifests(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output, also for a refused manifest")
    add_pod_policy(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.check import check_manifest

    return each_manifest(options, lambda source: check_manifest(source, options.pod_policy, as_json=options.json))
