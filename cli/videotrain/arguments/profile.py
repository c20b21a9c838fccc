"""`videotrain profile`."""

from __future__ import annotations

import argparse

from videotrain.arguments.types import folder


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "profile",
        help="trace some training steps of a local run",
        description="Ask a local run for a trace of its next training steps by torch's profiler. It is stored in the "
        "stage's folder of the run's object store; `videotrain get` shows where. On a cluster, set the annotation "
        "videotrain.dev/profile of the run, such as 'steps=3 ranks=0,8'.",
    )
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory of `local`")
    parser.add_argument("--steps", default="3", metavar="N", help="steps to trace (default 3)")
    parser.add_argument("--ranks", default="0", metavar="N,N", help="ranks that do so (default 0)")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.profile import ask_for_profile

    return ask_for_profile(options.workdir, options.steps, options.ranks)
