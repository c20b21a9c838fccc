"""`videotrain render`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_defaults, add_manifests, add_pod_policy, each_manifest


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "render",
        help="print the Kubernetes objects that would be created",
        description="Print the Kubernetes objects that the operator would create for a manifest on an empty cluster.",
    )
    add_manifests(parser)
    parser.add_argument("--one", action="store_true", help="of pods that differ in their index alone, only the first")
    parser.add_argument("--summary", action="store_true", help="a line for each kind instead of the objects")
    parser.add_argument("--json", action="store_true", help="a Kubernetes List as JSON instead of YAML documents")
    add_pod_policy(parser)
    add_defaults(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.render import print_objects
    from videotrain.manifest_file import read_defaults

    defaults = read_defaults(options.defaults)
    return each_manifest(
        options,
        lambda source: print_objects(
            source, options.pod_policy, defaults, as_json=options.json, one=options.one, summary=options.summary
        ),
    )
