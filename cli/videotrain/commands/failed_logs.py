"""`videotrain logs --failed`: what the workers of a failed generation left in the run's object store."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.commands.cluster_store import found_run
from videotrain.commands.get import local_runs
from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.errors import UsageError
from videotrain.locks import holder
from videotrain.objectstore.s3_client import StorageError, external_credentials, s3_client
from videotrain.report.workdir import split_uri
from videotrain_api.resource.trainrun import Storage
from videotrain_api.schema import Json
from videotrain_api.storage.layout import failures_prefix

_OBJECT: Final = re.compile(r"/g(?P<generation>\d+)-(?P<pod>[^/]+)\.txt\.gz$")


class _Stored(NamedTuple):
    generation: int
    pod: str
    key: str


def print_failed(
    name: str | None, where: ClusterChoice, workdir: Path | None, pod: str | None, endpoint_url: str | None
) -> int:
    """Print log tails and stacks of the newest generation of a run that failed.

    Args:
        name: NAME or NAMESPACE/NAME of a run in a cluster.
        where: the cluster.
        workdir: of a local run instead.
        pod: the one that is wanted; all that stored something if None.
        endpoint_url: of the run's object store; the run's own if None.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: there is no such run or nothing of it, or cluster or object store cannot be asked.
    """
    try:
        run, client = _of_cluster(str(name), where, endpoint_url) if workdir is None else _of_folder(workdir)
        storage, head = Storage.from_wire(run["spec"]["storage"]), run["metadata"]
        folder = failures_prefix(storage.uri, head["name"], head["uid"])
        bucket, prefix = split_uri(folder)
        stored = _listed(client, bucket, prefix)
        for one in _chosen(stored, pod, folder):
            body = client.get_object(Bucket=bucket, Key=one.key)["Body"].read()
            sys.stdout.write(f"s3://{bucket}/{one.key}\n{gzip.decompress(body).decode(errors='replace')}\n")
    except (StorageError, BotoCoreError, ClientError) as error:
        raise UsageError(f"the run's object store was not read: {error}; see --endpoint-url") from None
    return 0


def _of_cluster(name: str, where: ClusterChoice, endpoint_url: str | None) -> tuple[Json, Any]:
    found = found_run(name, where)
    return found.run, found.client(endpoint_url)


def _of_folder(workdir: Path) -> tuple[Json, Any]:
    run = local_runs(workdir)[0]
    storage = Storage.from_wire(run["spec"]["storage"])
    if holder(workdir) is None and (workdir / "s3").is_dir():
        raise UsageError(
            f"{workdir}: nobody serves its object store; run `videotrain serve {workdir}` beside this, or read the "
            f"whole logs in {workdir / 'logs'}"
        )
    secrets = read_objects(workdir / DATABASE_FILE, "Secret")
    return run, s3_client(storage.endpoint_url, external_credentials(storage, secrets), storage.region)


def _listed(client: Any, bucket: str, prefix: str) -> list[_Stored]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/g")
    keys = sorted(each["Key"] for page in pages for each in page.get("Contents", ()))
    found = ((_OBJECT.search(key), key) for key in keys)
    return [_Stored(int(match["generation"]), match["pod"], key) for match, key in found if match]


def _chosen(stored: list[_Stored], pod: str | None, folder: str) -> list[_Stored]:
    if not stored:
        raise UsageError(f"{folder}: no worker of the run has failed, or its pod could not store its end")
    if pod is None:
        return [one for one in stored if one.generation == stored[-1].generation]
    of_pod = [one for one in stored if one.pod == pod]
    if not of_pod:
        allowed = ", ".join(dict.fromkeys(one.pod for one in stored))
        raise UsageError(f"--pod {pod}: it stored nothing; allowed: {allowed}")
    return of_pod[-1:]
