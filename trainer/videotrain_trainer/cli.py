"""Commands of the trainer's image.

`agent` is the process of a worker pod, `run` one worker process below torchrun; the others are for people.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from videotrain_trainer import __version__
from videotrain_trainer.errors import TrainerError

COMMANDS = (
    "append",
    "bill",
    "check",
    "convert",
    "curate",
    "devices",
    "evaluate",
    "export",
    "index",
    "push",
    "sample",
    "tune",
)
"""Modules of `videotrain_trainer.commands`, each with HELP, add_options and run."""


def _agent(_options: argparse.Namespace) -> int:
    from videotrain_trainer.agent.agent import Agent
    from videotrain_trainer.worker.pod import Pod

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return Agent(Pod.from_environment()).run()


def _run(_options: argparse.Namespace) -> int:
    # Imported here, for it takes seconds and torch, which the agent must do without.
    from videotrain_trainer.worker import main as process

    process.entry()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="videotrain-trainer", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    agent = commands.add_parser("agent", help="obey rosters until SIGTERM; the command of a worker pod")
    agent.set_defaults(function=_agent)
    run = commands.add_parser("run", help="be one worker process: torchrun ... -m videotrain_trainer.cli run")
    run.set_defaults(function=_run)
    for name in COMMANDS:
        module = importlib.import_module(f"videotrain_trainer.commands.{name}")
        command = commands.add_parser(name, help=module.HELP)
        module.add_options(command)
        command.set_defaults(function=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code is one of videotrain_api.vocabulary.ExitCode."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.function(options)
    except TrainerError as error:
        sys.stderr.write(f"videotrain-trainer {options.command}: {error}\n")
        return error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
