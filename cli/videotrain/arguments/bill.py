"""`videotrain bill`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_cluster_choice, add_price_list, cluster_choice
from videotrain.arguments.types import folder
from videotrain.errors import UsageError
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "bill",
        help="say what a run cost, or all runs by team, stage, node or cause",
        description="What runs cost: those that a cluster has and those whose bill its operator has kept, those of a "
        "local working directory, or those whose bills lie in a bucket. Without RUN, all of them.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="name of one run: its whole bill")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--workdir", type=folder, metavar="W", help="working directory of `local`")
    place.add_argument("--bucket", metavar="URI", help="spec.storage.uri of runs, such as s3://videotrain/runs")
    add_cluster_choice(parser)
    parser.add_argument(
        "--operator-namespace",
        default="videotrain-system",
        metavar="N",
        help="where the operator keeps the bills of runs that are gone (default videotrain-system)",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of the bucket's object store (default: AWS)")
    parser.add_argument("--since", metavar="TIME", help="only what was held from then on, such as 2026-11-01 (UTC)")
    parser.add_argument("--until", metavar="TIME", help="only what was held before then")
    parser.add_argument(
        "--by",
        choices=("team", "namespace", "run", "stage", "node", "cause", "bucket", "source"),
        help="a line for each (default run); with --since and --until, the money of those that were held then; source "
        "shares the cost of stages that train out by the samples of each of dataset.sources (--workdir or --bucket)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print (default table)")
    form.add_argument("--csv", action="store_const", const="csv", dest="output", help="print CSV")
    form.add_argument("--focus", action="store_const", const="focus", dest="output", help="print FOCUS 1.3 rows as CSV")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write a Parquet file instead of printing")
    parser.add_argument(
        "--track",
        action="store_true",
        help="attach the closed bill of RUN to its experiment trackers, with this environment's keys; once",
    )
    parser.add_argument("--tracking-uri", metavar="URL", help="of MLflow's server, if pods reach it by another one")
    add_price_list(parser, "prices what is estimated of the object store, also in FOCUS rows of its own")
    parser.set_defaults(handler=_run)


def _track(options: argparse.Namespace) -> int:
    if not options.track:
        raise UsageError("--tracking-uri: says where --track finds MLflow's server; add --track")
    if options.run is None or options.workdir is not None or options.bucket is not None:
        raise UsageError(
            "--track: attaches the bill of a run of a cluster, RUN; `videotrain local` attaches that of its own run"
        )
    with brought_by("local"):
        from videotrain.commands.track_bill import track_bill

    return track_bill(options.run, cluster_choice(options), options.endpoint_url, options.tracking_uri)


def _run(options: argparse.Namespace) -> int:
    if options.track or options.tracking_uri:
        return _track(options)
    from videotrain.commands.bill import BillOptions, moment, print_bill
    from videotrain.manifest_file import read_price_list

    return print_bill(
        BillOptions(
            run=options.run,
            workdir=options.workdir,
            bucket=options.bucket,
            endpoint_url=options.endpoint_url,
            kubeconfig=options.kubeconfig,
            context=options.context,
            namespace=options.namespace or None,
            operator_namespace=options.operator_namespace,
            since=moment(options.since) if options.since else None,
            until=moment(options.until) if options.until else None,
            by=options.by,
            output=options.output,
            parquet=options.parquet,
            prices=read_price_list(options.price_list),
        )
    )
