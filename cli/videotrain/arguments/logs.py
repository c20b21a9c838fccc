"""`videotrain logs`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_run_choice, check_run_choice, cluster_choice
from videotrain.arguments.types import lines
from videotrain.errors import UsageError
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "logs",
        help="print what the workers of a run print",
        description="Print what the pod with rank 0 of a run prints, or another one, or all.",
    )
    add_run_choice(parser)
    pods = parser.add_mutually_exclusive_group()
    pods.add_argument("--pod", metavar="POD", help="of this pod (default: the one with rank 0)")
    pods.add_argument("--all", action="store_true", help="of all pods, with their names before the lines")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the end")
    parser.add_argument("--tail", type=lines, metavar="N", help="only the last lines of what is there")
    parser.add_argument("--previous", action="store_true", help="of the container before its last restart")
    parser.add_argument(
        "--failed",
        action="store_true",
        help="log tails and stacks of the newest generation that failed, from the run's object store; --pod chooses",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of that object store (default: the run's own)")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    check_run_choice(options)
    with brought_by("cluster"):
        from videotrain.commands.logs import LogOptions, print_logs

    if options.failed:
        _check_failed(options)
        with brought_by("local"):
            from videotrain.commands.failed_logs import print_failed

        return print_failed(options.run, cluster_choice(options), options.workdir, options.pod, options.endpoint_url)

    return print_logs(
        LogOptions(
            run=options.run,
            where=cluster_choice(options),
            workdir=options.workdir,
            pod=options.pod,
            all=options.all,
            follow=options.follow,
            tail=options.tail,
            previous=options.previous,
        )
    )


def _check_failed(options: argparse.Namespace) -> None:
    others = [f"--{name}" for name in ("all", "follow", "previous") if getattr(options, name)]
    others += ["--tail"] if options.tail is not None else []
    if others:
        raise UsageError(f"--failed: prints what is stored, whole; leave out {', '.join(others)}")
