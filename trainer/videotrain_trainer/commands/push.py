"""`videotrain-trainer push`: a folder to a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "upload a folder to a repository of the Hugging Face hub"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Upload a folder as one commit, with the hub's own client: HF_TOKEN or the login of `hf auth login` is the "
        "token. The repository is made if it is missing."
    )
    parser.add_argument("folder", type=Path, help="folder to upload")
    parser.add_argument("uri", metavar="hf://ORGANISATION/REPOSITORY[@BRANCH]", help="where to")
    parser.add_argument("--private", action="store_true", help="make a private repository, if it is made")
    parser.add_argument("--message", default="Upload model", help="of the commit")


def run(options: argparse.Namespace) -> int:
    """Push.

    Raises:
        TrainerError: the hub cannot be reached, or refuses.
    """
    from videotrain_trainer.hub_push import push_folder

    pushed = push_folder(options.folder, options.uri, private=options.private, message=options.message)
    sys.stdout.write(f"{pushed.url}  commit {pushed.commit}\n")
    return 0
