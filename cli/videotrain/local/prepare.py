"""From the command line to a run that can start: everything that can be refused is refused here."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from videotrain.errors import UsageError
from videotrain.extras import needs
from videotrain.local.chaos_spec import ChaosError, Fault, parse_faults
from videotrain.local.dataset import DatasetError, resolve_videos
from videotrain.manifest_file import read_manifest
from videotrain.objectstore.s3_client import (
    Credentials,
    StorageError,
    check_bucket,
    external_credentials,
    is_external,
    secret_manifest,
)
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.validation import parse_run

Json = dict[str, Any]
TRAINER: Final = "videotrain-trainer"
USER_MANAGER: Final = "videotrain-local"
"""Field manager of what the user writes."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that was accepted."""

    manifest: Json
    """The user's document with the command line's changes in it."""
    run: VideoTrainingRun
    """The same, parsed."""
    secrets: tuple[Json, ...]
    """Secrets to create."""
    credentials: Credentials | None
    """Keys of the manifest's own object store; None if the embedded one is used."""
    faults: tuple[Fault, ...]

    @property
    def nodes(self) -> int:
        """The most nodes that any stage may use."""
        return max(node_bounds(self.run, stage).max for stage in self.run.spec.stages)

    @property
    def storage_secret(self) -> str:
        """Name of the Secret with the keys of the object store."""
        return f"{self.run.metadata.name}-s3"


def prepare(file: Path, data: Path | None, seed: int | None, chaos: Sequence[str]) -> Prepared:
    """Read and check a manifest together with the options that change it.

    Raises:
        ManifestFileError: the file cannot be read.
        ManifestError: the manifest is refused.
        UsageError: the trainer is not installed, or the dataset, the object store or a fault cannot be used.
    """
    document = read_manifest(file)
    manifest = copy.deepcopy(document.run)
    run = parse_run(manifest)
    _require_trainer()
    try:
        videos = resolve_videos(run.spec.dataset.videos, data)
        faults = parse_faults(chaos, {stage.name: stage.total_steps for stage in run.spec.stages})
        credentials = _external(run, document.secrets)
    except (DatasetError, ChaosError, StorageError) as error:
        raise UsageError(str(error)) from None
    if videos is not None:
        manifest["spec"]["dataset"]["videos"] = videos
    if seed is not None:
        manifest["spec"]["seed"] = seed
    manifest["metadata"].setdefault("namespace", run.metadata.namespace)
    secrets = [secret | {"metadata": secret["metadata"] | {"namespace": run.metadata.namespace}}
               for secret in document.secrets]  # fmt: skip
    return Prepared(
        manifest=manifest,
        run=parse_run(manifest),
        secrets=tuple(secrets),
        credentials=credentials,
        faults=tuple(faults),
    )


def _require_trainer() -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if shutil.which(TRAINER, path=search) is None:
        raise UsageError(needs("local", f"the program {TRAINER} beside {sys.executable} or on PATH"))


def _external(run: VideoTrainingRun, secrets: Sequence[Json]) -> Credentials | None:
    if not is_external(run, secrets):
        return None
    credentials = external_credentials(run.spec.storage, secrets)
    check_bucket(run.spec.storage, credentials)
    return credentials


def with_storage(prepared: Prepared, endpoint_url: str | None, credentials: Credentials) -> Prepared:
    """The run with its object store filled in: endpoint, and a Secret with the keys."""
    manifest = copy.deepcopy(prepared.manifest)
    storage = manifest["spec"]["storage"]
    if endpoint_url is not None:
        storage["endpointUrl"] = endpoint_url
    secrets = prepared.secrets
    if prepared.credentials is None or "credentialsSecret" not in storage:
        storage["credentialsSecret"] = prepared.storage_secret
        made = secret_manifest(prepared.storage_secret, prepared.run.metadata.namespace, credentials)
        secrets = (*secrets, made)
    return Prepared(
        manifest=manifest, run=parse_run(manifest), secrets=secrets, credentials=credentials, faults=prepared.faults
    )
