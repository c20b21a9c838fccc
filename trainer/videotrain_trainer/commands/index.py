"""`videotrain-trainer index`: the sample index of an encoded set, written from its catalogue."""

from __future__ import annotations

import argparse
import sys

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.storage import ObjectStore

HELP = "write the sample index of an encoded set that has none, or whose catalogue was changed"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Write the sample index of an encoded set from its catalogue (manifest.parquet). Encode stages write both; "
        "sets of earlier versions have none, and after a change of scores it has to follow. "
        "No sample is read. A stage that trains on a set without an index makes one for itself, on every node."
    )
    parser.add_argument("set", help="prefix of the set: a path or an s3:// URI")


def run(options: argparse.Namespace) -> int:
    """Write it.

    Raises:
        DataError: there is no catalogue, or it lacks columns.
    """
    from videotrain_api.storage import layout
    from videotrain_trainer.data.index_writer import read_catalogue, write_index
    from videotrain_trainer.data.sets import read_set_info, set_info_uri
    from videotrain_trainer.evaluation.videos import uri_of

    uri = uri_of(options.set)
    store = ObjectStore.for_storage(Storage(uri="s3://from-the-environment"))
    size = store.stat(layout.latent_manifest(uri)).size
    sources = read_set_info(store, uri).sources if store.exists(set_info_uri(uri)) else []
    info = write_index(store, uri, read_catalogue(store, uri, sources), size, sources)
    total = sum(bucket.file.size for bucket in info.buckets)
    samples = sum(bucket.samples for bucket in info.buckets)
    sys.stdout.write(
        f"{layout.sample_index(uri)}: {samples:,} samples in {len(info.buckets)} buckets, {total:,} bytes\n"
    )
    return 0
