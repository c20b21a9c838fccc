"""`videotrain sample`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_results
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "sample",
        help="draw from the models of a finished run",
        description="Draw pictures and videos from the models of a finished run, in the size and with the settings of "
        "its last sample stage. Every other flag goes to the trainer's own command and wins over these: --prompt, "
        "--image, --resolution, --num-frames, --seed, --output and many more; `videotrain-trainer sample --help` lists "
        "them.",
        epilog="example: videotrain sample --workdir W --prompt 'A red ball rolls over grass.' --image first.png",
        allow_abbrev=False,
    )
    add_results(parser)
    parser.set_defaults(handler=_run, passes_flags_on=True)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.sample import sample

    return sample(options.workdir, options.results, options.passed_on)
