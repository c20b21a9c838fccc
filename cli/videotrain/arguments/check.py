"""`videotrain check`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from videotrain.arguments.shared import (
    add_cluster_choice,
    add_defaults,
    add_manifests,
    add_pod_policy,
    cluster_choice,
    each_manifest,
)
from videotrain.errors import EXIT_USAGE, UsageError
from videotrain.extras import brought_by

if TYPE_CHECKING:
    from videotrain_api.schema import Json


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with a run, before it costs anything",
        description="Check a run: the rules of the manifest and the memory of its rows; with the trainer installed "
        "also every URI and its credentials, names and shapes of weights, data, and buckets that no clip fits; with "
        "--cluster also what the cluster would say: admission, Secrets, queue, nodes. Exit code 0 if nothing is wrong, "
        "2 for a refused manifest, else that of the run that would fail (64 configuration, 65 data, 69 store, 77 "
        "access).",
    )
    add_manifests(parser)
    parser.add_argument("--quick", action="store_true", help="ask the manifest alone, not the trainer")
    parser.add_argument("--cluster", action="store_true", help="ask the cluster of the kubeconfig, too")
    add_cluster_choice(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output, also for a refused manifest")
    add_pod_policy(parser)
    add_defaults(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.check import CheckOptions, check_run, refused, write_documents
    from videotrain.manifest_file import ManifestFileError, read_defaults
    from videotrain_api.schema import ManifestError

    ask = None
    if options.cluster:
        with brought_by("cluster"):
            from videotrain.commands.check_cluster import ask_cluster

        ask = partial(ask_cluster, where=cluster_choice(options))
    documents: list[Json] = []
    try:
        wanted = CheckOptions(
            pod_policy=options.pod_policy,
            defaults=read_defaults(options.defaults),
            json=options.json,
            quick=options.quick,
            cluster=ask,
        )
        code = each_manifest(options, lambda source: check_run(source, wanted, documents))
    except (ManifestError, ManifestFileError, UsageError) as error:
        if not options.json:
            raise
        documents, code = [refused(None, error)], EXIT_USAGE
    if options.json:
        write_documents(documents)
    return code
