"""Arguments that several subcommands take alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from videotrain.arguments.types import amount, folder, stage_seconds, utilisation
from videotrain.errors import UsageError, refuse
from videotrain.extras import brought_by

if TYPE_CHECKING:
    from videotrain.commands.cluster_runs import ClusterChoice
    from videotrain.manifest_file import Source


def add_assumptions(parser: argparse.ArgumentParser) -> None:
    """What modelled times rest on."""
    parser.add_argument("--mfu", type=utilisation, help="model FLOPs utilisation, 0 to 1, instead of modelled rates")
    parser.add_argument(
        "--seconds-per-step",
        type=stage_seconds,
        action="append",
        default=[],
        metavar="STAGE=SECONDS",
        help="measured time of one step of a stage, instead of modelling it",
    )
    parser.add_argument(
        "--hours-of-video",
        type=amount,
        metavar="H",
        help="hours of raw video, by which curate and encode stages are modelled",
    )


def add_manifests(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Which manifests, and what is changed in them."""
    each = "each VideoTrainingRun in them" if several else "the VideoTrainingRun in it"
    text = f"manifest; - is standard input, and {each} is taken"
    parser.add_argument("files", type=Path, nargs="*" if several else "?", metavar="FILE", help=text)
    parser.add_argument("-f", "--filename", type=Path, action="append", default=[], metavar="FILE", help="the same")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="changes",
        help="another value for a field, such as nodes.max=4 or stages[train].train.steps=40; may be repeated",
    )


def each_manifest(options: argparse.Namespace, work: Callable[[Source], int]) -> int:
    """Do something with each run that was named; the highest of the exit codes.

    One that is refused is told, and does not end the work on the others.

    Raises:
        UsageError: none is named.
    """
    from videotrain.manifest_file import ManifestFileError, sources
    from videotrain_api.schema import ManifestError

    named = options.files if isinstance(options.files, list) else [options.files] if options.files else []
    paths = [*named, *options.filename]
    if not paths:
        raise UsageError("no manifest is named; give FILE, or -f FILE (- is standard input)")
    code = 0
    for source in sources(paths, options.changes):
        options.file = source  # whom a refusal names
        try:
            code = max(code, work(source))
        except (ManifestError, ManifestFileError, UsageError) as error:
            code = max(code, refuse(error, source))
    return code


def one_manifest(options: argparse.Namespace) -> Source:
    """The only run that was named.

    Raises:
        UsageError: none was, or several.
    """
    found: list[Source] = []

    def take(source: Source) -> int:
        found.append(source)
        return 0

    each_manifest(options, take)
    if len(found) != 1:
        raise UsageError(f"{len(found)} runs are named ({', '.join(map(str, found))}); this command takes one")
    return found[0]


def add_run_choice(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which run: one of a cluster, or that of a working directory."""
    text = "NAME or NAMESPACE/NAME in the cluster"
    if several:
        parser.add_argument("runs", nargs="*", metavar="RUN", help=f"{text} (default: all)")
    else:
        parser.add_argument("run", nargs="?", metavar="RUN", help=text)
    parser.add_argument("--workdir", type=folder, metavar="W", help="working directory of `local`, not a cluster")
    add_cluster_choice(parser)


def check_run_choice(options: argparse.Namespace) -> None:
    """Refuse neither and both.

    Raises:
        UsageError: no run is named, or two are.
    """
    if (options.run is None) == (options.workdir is None):
        raise UsageError("name one run: RUN of a cluster, or --workdir W of `videotrain local`")


def add_cluster_choice(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and which of its namespaces."""
    parser.add_argument("-n", "--namespace", default="", metavar="NS", help="of these runs alone (default: of all)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="instead of the usual ones")
    parser.add_argument("--context", metavar="NAME", help="in the kubeconfig, instead of its current one")


def cluster_choice(options: argparse.Namespace) -> ClusterChoice:
    """What was chosen by the arguments of `add_cluster_choice`."""
    with brought_by("cluster"):
        from videotrain.commands.cluster_runs import ClusterChoice

    return ClusterChoice(options.namespace, options.kubeconfig, options.context)


def add_device(parser: argparse.ArgumentParser, what: str) -> None:
    """What `what` (a plural noun) compute on."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"what the {what} compute on: a GPU each if there are enough of them, else the CPU (auto, the default); "
        "the CPU; or a GPU each and nothing else (cuda)",
    )


def add_pod_policy(parser: argparse.ArgumentParser) -> None:
    """The standard that pods are held to."""
    parser.add_argument(
        "--pod-policy",
        choices=("baseline", "restricted", "any"),
        default="restricted",
        help="Pod Security Standard that worker pods have to keep to: the value podTemplate.policy of the operator's "
        "chart (default restricted)",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Which finished run."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", type=folder, metavar="W", help="working directory of `local`")
    place.add_argument("--results", type=folder, metavar="DIR", help="a folder that `videotrain fetch` wrote")


def add_defaults(parser: argparse.ArgumentParser) -> None:
    """The cluster's defaults for runs."""
    parser.add_argument(
        "--defaults",
        type=Path,
        metavar="FILE",
        help="the cluster's defaults for runs: the values of the operator's chart with runDefaults, or the ConfigMap "
        "that it made of them",
    )


def add_price_list(parser: argparse.ArgumentParser, what: str) -> None:
    """What nodes and the object store cost; `what` is done with it."""
    parser.add_argument(
        "--price-list",
        type=Path,
        metavar="FILE",
        help=f"the values of the operator's chart with priceList, or that part alone: {what}",
    )
