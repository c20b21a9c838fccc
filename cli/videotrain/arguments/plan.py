"""`videotrain plan`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import (
    add_assumptions,
    add_defaults,
    add_manifests,
    add_pod_policy,
    add_price_list,
    each_manifest,
)
from videotrain.arguments.types import amount, world


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="say what a manifest would cost",
        description="Say what a manifest would cost, stage by stage: tokens and FLOPs by formula, time and money "
        "modelled from stated rates in a low, a mid and a high band, or from a stated MFU or measured seconds.",
    )
    add_manifests(parser)
    add_assumptions(parser)
    parser.add_argument(
        "--failures",
        type=amount,
        metavar="N",
        help="unexpected interruptions per 1,000 GPU-days (default 0.47, as in the training of Llama 3)",
    )
    parser.add_argument(
        "--gpus",
        type=world,
        action="append",
        default=[],
        metavar="N",
        help="tell the memory of a world of so many GPUs, too; may be repeated",
    )
    parser.add_argument(
        "--data-wait",
        action="store_true",
        help="replay the loaders: what train stages wait for their data, and what that costs; takes seconds",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="look for the fastest micro-batch, recomputation, degree and engine of every row that fit, instead",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    add_pod_policy(parser)
    add_defaults(parser)
    add_price_list(parser, "prices what is estimated of the object store")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.plan import Assumptions, print_plan
    from videotrain.commands.plan_search import print_search
    from videotrain.manifest_file import read_defaults, read_price_list

    defaults = read_defaults(options.defaults)
    if options.search:
        return each_manifest(
            options, lambda source: print_search(source, options.pod_policy, defaults, as_json=options.json)
        )
    failures = {} if options.failures is None else {"failures": options.failures}
    assumptions = Assumptions(
        mfu=options.mfu,
        seconds_per_step=dict(options.seconds_per_step),
        hours_of_video=options.hours_of_video,
        gpus=frozenset(options.gpus),
        data_wait=options.data_wait,
        prices=read_price_list(options.price_list),
        **failures,
    )
    return each_manifest(
        options, lambda source: print_plan(source, assumptions, options.pod_policy, defaults, as_json=options.json)
    )
