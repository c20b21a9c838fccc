"""`videotrain report`: the page about a run, while it goes on and afterwards."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.commands.cluster_store import found_run
from videotrain.commands.get import local_runs
from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.errors import UsageError
from videotrain.files import replace_file
from videotrain.locks import explain, holder
from videotrain.objectstore.s3_client import StorageError, external_credentials, s3_client
from videotrain.report import write_report
from videotrain.report.summary import SUMMARY_FILE, write_summary
from videotrain.report.workdir import S3Objects, split_uri
from videotrain_api.resource.trainrun import Storage
from videotrain_api.schema import Json
from videotrain_api.storage.layout import records_prefix
from videotrain_api.vocabulary import DIR_RUN, Phase

WATCH_SECONDS: Final = 10
"""Between two pages of `--watch`, and between two looks of the browser."""
_PART: Final = re.compile(r"/g(?P<generation>\d+)-\d+\.jsonl$")
_RESTING: Final = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED, Phase.INVALID)


def report_local(workdir: Path, *, watch: bool) -> int:
    """Write the page of a local run again, from what it is now.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: nobody serves the run's object store, and there is no page of an earlier time to make anew.
    """

    def write() -> Json:
        run = local_runs(workdir)[0]
        storage = Storage.from_wire(run["spec"]["storage"])
        served = holder(workdir) is not None or not (workdir / "s3").is_dir()
        if served:
            secrets = read_objects(workdir / DATABASE_FILE, "Secret")
            client = s3_client(storage.endpoint_url, external_credentials(storage, secrets), storage.region)
            write_summary(workdir, run, S3Objects(client))
        elif not (workdir / SUMMARY_FILE).is_file():
            raise UsageError(f"{workdir}: no run goes on there, and none has left {SUMMARY_FILE}; let it go on first")
        return run

    return _write_pages(workdir, write, watch=watch)


def report_of_cluster(
    name: str, where: ClusterChoice, to: Path | None, endpoint_url: str | None, *, watch: bool
) -> int:
    """Write the page of a run in a cluster, from its status and what it stored.

    Args:
        name: NAME or NAMESPACE/NAME.
        where: the cluster.
        to: folder for the page; NAME-report if None.
        endpoint_url: of the run's object store; the run's own if None.
        watch: write it again and again until the run rests.

    Raises:
        UsageError: there is no such run, or the cluster or its object store cannot be asked.
    """
    folder = to or Path(f"{name.rpartition('/')[2]}-report")

    def write() -> Json:
        found = found_run(name, where)
        folder.mkdir(parents=True, exist_ok=True)
        client = found.client(endpoint_url)
        _fetch_records(client, found.storage.uri, found.run["metadata"], folder)
        write_summary(folder, found.run, S3Objects(client))
        return found.run

    return _write_pages(folder, write, watch=watch)


def _fetch_records(client: Any, storage_uri: str, metadata: Json, folder: Path) -> None:
    """Bring the records that the run's first worker stored to where those of a local run lie."""
    run = metadata["name"]
    bucket, prefix = split_uri(records_prefix(storage_uri, run, metadata["uid"]))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/g")
    parts: dict[int, list[str]] = {}
    for key in sorted(each["Key"] for page in pages for each in page.get("Contents", ())):
        if (match := _PART.search(key)) is not None:
            parts.setdefault(int(match["generation"]), []).append(key)
    target = folder / "pods" / f"{run}-w0-00000000" / DIR_RUN
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("records-*-0.jsonl"):
        if path.name not in {f"records-{generation}-0.jsonl" for generation in parts}:
            path.unlink()  # of another run under this name
    for generation, keys in parts.items():
        lines = b"".join(client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys)
        replace_file(target / f"records-{generation}-0.jsonl", lines)


def _write_pages(folder: Path, write: Callable[[], Json], *, watch: bool) -> int:
    told = False
    while True:
        try:
            run = write()
            rests = (run.get("status") or {}).get("phase") in _RESTING
            path = write_report(folder, run, WATCH_SECONDS if watch and not rests else None)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written: {explain(error)}; name another folder") from None
        except (StorageError, BotoCoreError, ClientError) as error:
            raise UsageError(f"the run's object store was not read: {error}; see --endpoint-url") from None
        if not told:
            sys.stdout.write(f"{path}\n")
            sys.stdout.flush()
            told = True
        if rests or not watch:
            return 0
        time.sleep(WATCH_SECONDS)
