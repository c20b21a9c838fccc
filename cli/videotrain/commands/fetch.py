"""`videotrain fetch`: the results of a run in a cluster, as a local run leaves them in W/results/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from videotrain.bills.sources import bill_of_run
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.commands.cluster_store import found_run
from videotrain.errors import UsageError
from videotrain.objectstore.s3_client import StorageError
from videotrain.report.summary import fetch_videos
from videotrain.report.workdir import S3Objects
from videotrain.results.folder import Results, manifest_of, write_results
from videotrain_api.resource.stored_status import read_status


def fetch(name: str, where: ClusterChoice, target: Path | None, endpoint_url: str | None) -> int:
    """Write the folder and say what is in it.

    Args:
        name: NAME or NAMESPACE/NAME.
        where: the cluster.
        target: the folder; the run's name if None.
        endpoint_url: of the object store; the run's if None.

    Returns:
        Exit code: 1 if no stage of the run has final weights yet.

    Raises:
        UsageError: there is no such run, or the cluster or its object store cannot be asked.
    """
    found = found_run(name, where)
    run, storage = found.run, found.storage
    folder = target or Path(run["metadata"]["name"])
    try:
        client = found.client(endpoint_url)
        objects, damaged = S3Objects(client), list[str]()
        results = write_results(folder, run, manifest_of(run), objects, bill_of_run(run, found.ledger), {})
        videos = fetch_videos(folder, run, read_status(run.get("status")).status, objects, damaged)
    except (StorageError, BotoCoreError, ClientError) as error:
        raise UsageError(f"{storage.uri}: was not read: {error}; see --endpoint-url, and this account's keys") from None
    except OSError as error:
        raise UsageError(f"--to {folder}: cannot be written: {error.strerror or error}") from None
    _tell(results, videos, damaged)
    return 0 if results.fetched else 1


def _tell(results: Results, videos: list[dict[str, Any]], damaged: list[str]) -> None:
    for each in results.fetched:
        path = results.folder / each.file
        sys.stdout.write(f"{path}  stage {each.stage}, {each.bytes / 2**20:.1f} MiB, {each.uri}\n")
    for video in videos:
        if video["file"] is not None:
            sys.stdout.write(f"{results.folder / video['file']}  {video['prompt']}\n")
    for note in (*results.notes, *damaged):
        sys.stderr.write(f"videotrain: {note}\n")
    if not results.fetched:
        sys.stderr.write("videotrain: no train or autoencoder stage is complete yet\n")
