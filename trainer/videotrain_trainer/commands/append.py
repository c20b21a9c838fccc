"""`videotrain-trainer append`: more data for an encoded set, which stages take in while they train."""

from __future__ import annotations

import argparse
import sys

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.storage import ObjectStore

HELP = "append an encoded set to another one, for stages that take such sets in while they train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Append an encoded set to another one. A train stage with appendedEverySteps takes it in behind the next of "
        "these steps; neither set is changed. The new set must have been made as the other one was, and have none of "
        "its clips. Without a new set, list what was appended."
    )
    parser.add_argument("set", help="prefix of the set that a stage trains on: a path or an s3:// URI")
    parser.add_argument("new", nargs="?", help="prefix of the set that is appended to it")


def run(options: argparse.Namespace) -> int:
    """Append it, or list what was appended.

    Raises:
        DataError: the sets do not fit together, or have a clip in common.
    """
    from videotrain_trainer.data.append import append, listed
    from videotrain_trainer.evaluation.videos import uri_of

    store, uri = ObjectStore.for_storage(Storage(uri="s3://from-the-environment")), uri_of(options.set)
    if options.new is None:
        for number, place, samples in listed(store, uri):
            sys.stdout.write(f"{number:6d}  {samples:>14,} samples  {place}\n")
        return 0
    number, samples = append(store, uri, uri_of(options.new))
    sys.stdout.write(f"{uri_of(options.new)}: {samples:,} samples, number {number} of what was appended to {uri}\n")
    return 0
