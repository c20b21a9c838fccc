"""The actions of `videotrain-trainer curate`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml
from pydantic import ValidationError

from videotrain_api.resource.stages import CurateTask
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import DropReport
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.curation.bounds import LOOSE_FIELDS, refuse_unmeasured
from videotrain_trainer.curation.merge import decide
from videotrain_trainer.curation.pictures import read_pictures
from videotrain_trainer.curation.report_page import page
from videotrain_trainer.data.manifest import CLIP_SCHEMA, EMBEDDING_SCHEMA, read_table, to_parquet
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.evaluation.videos import uri_of
from videotrain_trainer.storage import ObjectStore

SIDE = 368
"""Longer side of a sample frame, pixels."""


def run(options: argparse.Namespace) -> int:
    """Read the catalogue, decide again where bounds are given, and write."""
    store = ObjectStore.for_storage(Storage(uri="s3://from-the-environment"))
    prefix = str(uri_of(options.set))
    rows = read_table(store, layout.clip_manifest(prefix), CLIP_SCHEMA).to_pylist()
    report = read_checked(store, layout.drop_report(prefix), lambda data: DropReport.from_wire(unsealed_json(data)))
    before = report.clips
    if options.bounds:
        whole = [item for item in report.dropped if item.span is None]
        task = _task(report, options.bounds)
        refuse_unmeasured(rows, task)
        report = decide(rows, whole, report.videos, task, _embeddings(store, prefix, task))
    if options.action == "report":
        options.output.write_text(page(options.set, rows, report, lambda row: _frame(store, prefix, row)))
        sys.stdout.write(f"{options.output}: {report.clips:,} of {len(rows):,} clips are kept\n")
        return 0
    store.put(layout.drop_report(prefix), sealed_json(report.to_wire()))
    store.put(layout.clip_manifest(prefix), to_parquet(rows, CLIP_SCHEMA))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.counts.items())
    sys.stdout.write(f"{before:,} clips were kept, now {report.clips:,} are; dropped: {reasons or 'nothing'}\n")
    return 0


def _embeddings(store: ObjectStore, prefix: str, task: CurateTask) -> dict[str, bytes]:
    """Of the set's clips; none where no image model has seen them."""
    if task.image_model is None:
        return {}
    table = read_table(store, layout.clip_embeddings(prefix), EMBEDDING_SCHEMA)
    return dict(zip(table.column("uid").to_pylist(), table.column("embedding").to_pylist(), strict=True))


def _task(report: DropReport, bounds: list[str]) -> CurateTask:
    """The task of the set with other bounds."""
    fields = {CurateTask.model_fields[name].alias or name: name for name in LOOSE_FIELDS - {"drop_sources", "captions"}}
    changed: dict[str, Any] = {}
    for text in bounds:
        name, given, value = text.partition("=")
        if not given or name not in fields:
            allowed = ", ".join(sorted(fields))
            raise ConfigError(f"--set {text}: write FIELD=VALUE with one of {allowed}; others need the videos again")
        changed[name] = yaml.safe_load(value)
    try:
        return CurateTask.model_validate({**report.curate, **changed})
    except ValidationError as error:
        told = "; ".join(f"{found['loc'][0]}: {found['msg']}" for found in error.errors())
        raise ConfigError(f"--set: {told}") from error


def _frame(store: ObjectStore, prefix: str, row: Any) -> bytes | None:
    """A frame from the middle of a clip, as JPEG; None if it has no file."""
    return read_pictures(store, prefix, row, 1, SIDE)[0] if row["uri"] else None
