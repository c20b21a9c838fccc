"""`videotrain get`."""

from __future__ import annotations

import argparse

from videotrain.arguments.types import folder


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser("get", help="show the state of a local run", description="Show a local run's state.")
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory of `local`")
    parser.add_argument("--json", action="store_true", help="the VideoTrainingRun as JSON")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from videotrain.commands.get import print_state

    return print_state(options.workdir, as_json=options.json)
