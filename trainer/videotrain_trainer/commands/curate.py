"""`videotrain-trainer curate`: make a curated set, look at it, and move its bounds without reading a video again."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain_trainer.commands import curate_videos

HELP = "curate videos, show what curation dropped and why, and move its bounds"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    report = actions.add_parser("report", help="one page of HTML: histograms with bounds, sample frames by reason")
    retune = actions.add_parser("retune", help="decide again what is kept, from the catalogue alone")
    videos = actions.add_parser("run", help="curate a folder of raw videos, on this machine or in a Ray cluster")
    curate_videos.add_options(videos)
    for action in (report, retune):
        action.add_argument("set", help="prefix of a curated set; a path, file:// or s3:// URI")
        action.add_argument(
            "--set",
            dest="bounds",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="another bound, named as in the manifest, such as minBlur=20; may be repeated",
        )
    report.add_argument("--output", type=Path, default=Path("curation.html"), metavar="FILE", help="(curation.html)")


def run(options: argparse.Namespace) -> int:
    """Run one action; the exit code."""
    if options.action == "run":
        return curate_videos.run(options)
    # Imported here, for it takes seconds, which the agent must do without.
    from videotrain_trainer.commands import curate_run as command

    return command.run(options)
