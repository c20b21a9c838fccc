"""Bills of the runs of a working directory, of a cluster or of a bucket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.errors import UsageError
from videotrain_api.billing.document import BillError, RunBill, bill_of, bill_text, how_far, read_bill, replaces
from videotrain_api.cost.storage import estimates_of
from videotrain_api.render.names import ledger_name
from videotrain_api.schema import Json
from videotrain_api.storage.layout import BILL_FILE, bill_object
from videotrain_api.vocabulary import BILL_KEY, KIND, LABEL_BILL, LABEL_RUN, LEDGER_KEY

if TYPE_CHECKING:
    from videotrain_operator.kube.client import KubeClient


READERS: Final = 16
"""Bills of a bucket that are read at the same time."""


def bills_in_folder(workdir: Path) -> list[RunBill]:
    """Of the run of `videotrain local`, also while it goes on.

    Raises:
        UsageError: the folder holds no run.
    """
    path = workdir / DATABASE_FILE
    try:
        runs, maps = read_objects(path, KIND), read_objects(path, "ConfigMap")
    except FileNotFoundError:
        hint = f"give the folder that `videotrain local RUN.yaml --workdir {workdir}` made"
        raise UsageError(f"{workdir}: there is no {DATABASE_FILE} here; {hint}") from None
    return newest([*_of_runs(runs, maps), *_kept(maps)])


async def bills_in_cluster(client: KubeClient, namespace: str | None, operator_namespace: str) -> list[RunBill]:
    """Of all runs that a cluster has, and of those of which the operator has kept the bill.

    Args:
        client: of the cluster.
        namespace: of the runs; all if None.
        operator_namespace: where the operator keeps bills. A config map elsewhere that looks like one is anybody's. Who
            may not list config maps there is told so, and sees the bills of the runs that are there.

    Raises:
        ApiError: the cluster refuses.
    """
    from videotrain_operator.kube.client import ApiError  # here, since the light command has no operator

    runs = await client.list(KIND, namespace or "")
    owned = await client.list("ConfigMap", namespace or "", LABEL_RUN)
    try:
        kept = await client.list("ConfigMap", operator_namespace, LABEL_BILL)
    except ApiError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        sys.stderr.write(f"videotrain: runs that are gone are left out: {error}\n")
        kept = []
    found = newest([*_of_runs(runs, owned), *_kept(kept)])
    return [bill for bill in found if namespace in (None, bill.namespace)]


def bill_of_run(run: Json, ledger: Json | None) -> RunBill | None:
    """The bill of one run; None before it has one.

    Args:
        run: with its status.
        ledger: its config map, if it has one.
    """
    return next(iter(_of_runs([run], [] if ledger is None else [ledger])), None)


def store_bill(client: Any, storage_uri: str, bill: RunBill) -> str:
    """Write a bill beside the folders of runs in the object store, unless one that goes as far is there; its URI.

    Its folder is named by the run's uid, as those of a cluster's bills are: a later run of the same name has its own.

    Args:
        client: boto3's, for S3.
        storage_uri: spec.storage.uri of the run.
        bill: closed, or of a run that rests and may go on.
    """
    from videotrain.object_requests import repeated
    from videotrain.report.workdir import ObjectMissingError, S3Objects

    uri = bill_object(storage_uri, bill.uid)
    bucket, key = _place(uri)

    def there() -> bytes | None:
        try:
            return S3Objects(client).get(uri)
        except ObjectMissingError:
            return None

    # One reading that came damaged would put an older bill over a newer one.
    if all(replaces(bill, there()) for _ in range(2)):
        text = bill_text(bill).encode()
        repeated(lambda: client.put_object(Bucket=bucket, Key=key, Body=text, ContentType="application/json"))
    return uri


def _place(uri: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def bills_in_bucket(uri: str, endpoint_url: str | None) -> list[RunBill]:
    """Of all runs under a storage URI whose bills were stored; with the account's AWS credentials.

    Raises:
        UsageError: the bucket cannot be read, or a bill in it was changed: a sum without it would be wrong.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = _place(uri.rstrip("/"))
    try:
        client = boto3.client("s3", endpoint_url=endpoint_url)
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", Delimiter="/"
        )
        folders = [each["Prefix"] for page in pages for each in page.get("CommonPrefixes", ())]

        def read(folder: str) -> bytes | None:
            try:
                text: bytes = client.get_object(Bucket=bucket, Key=f"{folder}{BILL_FILE}")["Body"].read()
            except client.exceptions.NoSuchKey:
                return None  # the folder of a run that goes on
            return text

        with ThreadPoolExecutor(READERS) as pool:
            texts = dict(zip(folders, pool.map(read, folders), strict=True))
    except (BotoCoreError, ClientError) as error:
        raise UsageError(f"--bucket {uri}: {error}") from None
    return newest(_read(text, f"s3://{bucket}/{at}{BILL_FILE}") for at, text in texts.items() if text is not None)


def newest(bills: Iterable[RunBill]) -> list[RunBill]:
    """One bill of each run: the one that is closed, else the one that goes furthest."""
    found: dict[str, RunBill] = {}
    for bill in bills:
        other = found.get(bill.uid)
        if other is None or how_far(bill) > how_far(other):
            found[bill.uid] = bill
    return sorted(found.values(), key=lambda bill: (str(bill.created_at), bill.uid))


def _of_runs(runs: list[Json], maps: list[Json]) -> Iterable[RunBill]:
    texts = {(one["metadata"]["namespace"], one["metadata"]["name"]): one.get("data") or {} for one in maps}
    for run in runs:
        head = run["metadata"]
        text = texts.get((head["namespace"], ledger_name(head["name"])), {}).get(LEDGER_KEY)
        estimates = estimates_of(run)
        try:
            bill = bill_of(run, _ledger(text), estimates)
        except (AttributeError, KeyError, TypeError, ValueError):  # edited by hand: the status has all totals
            bill = bill_of(run, None, estimates)
        if bill is not None:
            yield bill


def _ledger(text: str | None) -> Json | None:
    try:
        document: Any = json.loads(text or "null")
    except ValueError:
        return None  # the operator says so in an event; the status has all totals
    return document if isinstance(document, dict) else None


def _kept(maps: list[Json]) -> Iterable[RunBill]:
    for one in maps:
        head, text = one["metadata"], (one.get("data") or {}).get(BILL_KEY)
        if text is not None:
            try:
                yield _read(text, f"config map {head['namespace']}/{head['name']}")
            except UsageError as error:
                sys.stderr.write(f"videotrain: left out: {error}\n")


def _read(text: str | bytes, where: str) -> RunBill:
    try:
        return read_bill(json.loads(text))
    except (ValueError, BillError) as error:
        raise UsageError(f"{where}: {error}") from None
