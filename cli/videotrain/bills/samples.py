"""How many samples of each source went into the weights, as checkpoints tell it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from videotrain.errors import UsageError
from videotrain_api.billing.document import RunBill
from videotrain_api.billing.sums import Taken
from videotrain_api.schema import Json
from videotrain_api.storage import layout


def taken_in_folder(workdir: Path, bills: Iterable[RunBill]) -> Taken:
    """From the summary of a local run.

    Raises:
        UsageError: the run has not left one yet.
    """
    from videotrain.report.summary import SUMMARY_FILE

    try:
        summary: Json = json.loads((workdir / SUMMARY_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"`videotrain report {workdir}` writes it while the run goes on"
        raise UsageError(f"{workdir}: there is no {SUMMARY_FILE} yet; {hint}") from None
    stages = {stage["name"]: stage.get("sources", {}) for stage in summary["samples"]["stages"]}
    return {bill.uid: stages for bill in bills if bill.run == summary["run"]}


def taken_in_bucket(uri: str, endpoint_url: str | None, bills: Sequence[RunBill]) -> Taken:
    """From the newest checkpoint of each stage of each run under a storage URI: two small objects each.

    Raises:
        UsageError: the bucket cannot be read.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from videotrain.report.workdir import DamagedObjectError, ObjectMissingError, S3Objects, read_sealed

    found: dict[str, dict[str, dict[str, int]]] = {}
    try:
        objects = S3Objects(boto3.client("s3", endpoint_url=endpoint_url))
        for bill in bills:
            for stage in bill.stages:
                prefix = layout.stage_prefix(uri, bill.run, stage.name)
                try:
                    step = read_sealed(objects, layout.latest_checkpoint(prefix))["step"]
                    commit = read_sealed(objects, layout.checkpoint_commit(prefix, step))
                except ObjectMissingError:  # a stage that does not train
                    continue
                found.setdefault(bill.uid, {})[stage.name] = commit.get("sourceSamples", {})
    except (BotoCoreError, ClientError, DamagedObjectError, OSError) as error:
        raise UsageError(f"--bucket {uri}: {error}") from None
    return found
