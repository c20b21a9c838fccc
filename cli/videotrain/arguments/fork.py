"""`videotrain fork`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_device, add_run_choice, check_run_choice, cluster_choice
from videotrain.arguments.types import folder
from videotrain.errors import UsageError
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "fork",
        help="begin a new run from what another one made",
        description="Begin a new run with the stages of another one from STAGE on. What they read of the stages before "
        "(clips, latents, weights) is taken from there; nothing of it is made again.",
        epilog="examples: videotrain fork --workdir W --from encode --to W2 --set 'stages[train].train.steps=500'; "
        "videotrain fork demo --from train --name demo-longer --optimizer --set 'stages[train].train.steps=2000'",
    )
    add_run_choice(parser)
    parser.add_argument("--from", required=True, metavar="STAGE", dest="stage", help="first stage of the new run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="changes",
        help="another value for a field of the new run, such as stages[train].train.steps=40; may be repeated",
    )
    parser.add_argument("--name", metavar="NEW", help="of the new run (default: the name with -2, -3 and so on)")
    parser.add_argument(
        "--optimizer",
        action="store_true",
        help="go on within STAGE, from its newest checkpoint with the optimizer's state; the order of samples stays",
    )
    parser.add_argument("--to", type=folder, metavar="W2", help="with --workdir: working directory of the new run")
    parser.add_argument("--json", action="store_true", help="with --workdir: progress as JSON lines")
    add_device(parser, "worker processes of a local run")
    parser.add_argument("--dry-run", action="store_true", help="in a cluster: print the new run and create nothing")
    parser.add_argument("--endpoint-url", metavar="URL", help="of the object store, if pods reach it by another one")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("local"):
        from videotrain.commands.fork import Fork, LocalFork, fork_here, fork_in_cluster

    if (options.workdir is None) != (options.to is None):
        raise UsageError("--to W2: goes with --workdir W; a run in a cluster is forked there")
    options.file = f"the fork of {options.run or options.workdir}"  # whom a refusal names
    fork = Fork(stage=options.stage, name=options.name, changes=tuple(options.changes), optimizer=options.optimizer)
    if options.workdir is not None:
        here = LocalFork(workdir=options.workdir, to=options.to, device=options.device, json=options.json)
        return fork_here(here, fork)
    where = cluster_choice(options)
    return fork_in_cluster(options.run, where, fork, dry_run=options.dry_run, endpoint_url=options.endpoint_url)
