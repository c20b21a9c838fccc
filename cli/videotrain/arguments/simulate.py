"""`videotrain simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_assumptions, add_manifests, add_pod_policy, one_manifest
from videotrain.arguments.types import amount, count, seed, world
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "simulate",
        help="live possible futures of a run in virtual time",
        description="Live possible futures of a run in virtual time: the real planner, bill and forecast, with "
        "failures that are drawn or read from a trace, and prices of a spot market.",
    )
    add_manifests(parser, several=False)
    parser.add_argument("--gpus", type=world, required=True, metavar="N", help="GPUs of the cluster")
    parser.add_argument("--days", type=amount, required=True, metavar="D", help="when the simulation ends")
    parser.add_argument(
        "--failures",
        default="llama3",
        metavar="TRACE|RATE",
        help="llama3 (the default), interruptions per 1,000 GPU-days, or a CSV file with hours, node, kind, hours_away",
    )
    parser.add_argument(
        "--spot",
        type=Path,
        metavar="PRICES",
        help="CSV with hours, price_per_gpu_hour, nodes, or the JSON of `aws ec2 describe-spot-price-history`",
    )
    parser.add_argument("--runs", type=count, default=1, metavar="R", help="how many futures (default 1)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="draws other futures (default 0)")
    parser.add_argument(
        "--interval",
        type=count,
        action="append",
        default=[],
        metavar="STEPS",
        help="compare checkpoints every so many steps; repeat, at least three tell which is best",
    )
    parser.add_argument("--repair-hours", type=amount, default=1.0, metavar="H", help="until a lost node is back")
    parser.add_argument("--save-seconds", type=amount, metavar="S", help="for which a checkpoint stops training")
    parser.add_argument("--start-seconds", type=amount, default=180.0, metavar="S", help="roster to first step")
    add_assumptions(parser)
    parser.add_argument("--page", type=Path, metavar="OUT.html", help="write a page with plots, too")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    add_pod_policy(parser)
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.simulate import SimulateOptions, simulate

    return simulate(
        SimulateOptions(
            manifest=one_manifest(options),
            gpus=options.gpus,
            days=options.days,
            failures=options.failures,
            spot=options.spot,
            runs=options.runs,
            seed=options.seed,
            intervals=tuple(dict.fromkeys(options.interval)),
            repair_hours=options.repair_hours,
            save_seconds=options.save_seconds,
            start_seconds=options.start_seconds,
            mfu=options.mfu,
            hours_of_video=options.hours_of_video,
            seconds_per_step=dict(options.seconds_per_step),
            page=options.page,
            json=options.json,
        ),
        options.pod_policy,
    )
