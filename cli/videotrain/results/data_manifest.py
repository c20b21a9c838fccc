"""Which data a run was trained on, as hashes of the tables that list them: results/data.json."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from videotrain.report.workdir import ObjectMissingError, S3Objects
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json
from videotrain_api.storage import layout

FILE: Final = "data.json"
MOST_BYTES: Final = 256 * 2**20
"""Larger tables are not fetched to be hashed; the entity tag of the store names them."""


def data_manifests(run: VideoTrainingRun, status: RunStatus, objects: S3Objects) -> dict[str, Json]:
    """The table of clips and that of encoded samples which the run's last stages read, each with URI, size and hash.

    Args:
        run: the run.
        status: its status; stages that did not succeed made no table.
        objects: its object store.
    """
    found: dict[str, Json] = {}
    for kind, uri in _tables(run, status):
        try:
            size, etag = objects.head(uri)
            found[kind] = {"uri": uri, "bytes": size, "etag": etag}
            if size <= MOST_BYTES:
                found[kind]["sha256"] = _sha256(objects, uri)
        except ObjectMissingError:
            continue  # of another run, and not here any more
    return found


def _tables(run: VideoTrainingRun, status: RunStatus) -> Iterator[tuple[str, str]]:
    done = {stage.name for stage in status.stages if stage.state == "Succeeded"}
    sets = {"clips": run.spec.dataset.clips, "latents": run.spec.dataset.latents}
    for stage in run.spec.stages:
        if stage.task in ("curate", "encode") and stage.name in done:
            kind = "clips" if stage.task == "curate" else "latents"
            sets[kind] = layout.stage_prefix(run.spec.storage.uri, run.metadata.name, stage.name)
    names = {"clips": layout.clip_manifest, "latents": layout.latent_manifest}
    for kind, prefix in sets.items():
        if prefix is not None and prefix.startswith("s3://"):
            yield kind, names[kind](prefix.rstrip("/"))


def _sha256(objects: S3Objects, uri: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        objects.download(uri, path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
