"""From the command line to a run that can start: everything that can be refused is refused here."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from videotrain.embedded.process_nodes import NodeShape
from videotrain.errors import UsageError
from videotrain.extras import needs
from videotrain.local.chaos_spec import ChaosError, Fault, parse_faults
from videotrain.local.dataset import DatasetError, resolve_videos
from videotrain.local.machine import Machine, check_machine
from videotrain.manifest_file import Source, read_manifest
from videotrain.objectstore.s3_client import (
    Credentials,
    StorageError,
    check_bucket,
    external_credentials,
    is_external,
    secret_manifest,
)
from videotrain.processes.devices import Device, Found, Need, Shares, find_devices, share_devices
from videotrain.processes.programs import TRAINER, find_program
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_name, pool_of
from videotrain_api.schema import Json
from videotrain_api.validation import parse_run

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
    shares: Shares
    """The nodes' GPUs."""
    shapes: tuple[NodeShape, ...]
    """What each node offers."""

    @property
    def storage_secret(self) -> str:
        """Name of the Secret with the keys of the object store."""
        return f"{self.run.metadata.name}-s3"


def prepare(
    file: Path | Source,
    data: Path | None,
    seed: int | None,
    chaos: Sequence[str],
    device: Device = "auto",
    found: Found | None = None,
) -> Prepared:
    """Read and check a manifest together with the options that change it.

    Args:
        file: the manifest.
        data: folder of raw videos instead of spec.dataset.videos.
        seed: instead of spec.seed.
        chaos: faults, see videotrain.local.chaos_spec.
        device: what the worker processes compute on.
        found: GPUs to share; those of this machine if None.

    Raises:
        ManifestFileError: the file cannot be read.
        ManifestError: the manifest is refused.
        UsageError: the trainer is not installed, or the dataset, the object store, a fault or the device cannot be
            used.
    """
    document = read_manifest(file)
    manifest = copy.deepcopy(document.run)
    run = parse_run(manifest)
    _require_trainer()
    try:
        videos = resolve_videos(run.spec.dataset, data)
        faults = parse_faults(chaos, {stage.name: stage.total_steps for stage in run.spec.stages})
        credentials = _external(run, document.secrets)
    except (DatasetError, ChaosError, StorageError) as error:
        raise UsageError(str(error)) from None
    if "" in videos:
        manifest["spec"]["dataset"]["videos"] = videos[""]
    for source in manifest["spec"]["dataset"].get("sources", []):
        source["uri"] = videos.get(source["name"], source["uri"])
    if seed is not None:
        manifest["spec"]["seed"] = seed
    manifest["metadata"].setdefault("namespace", run.metadata.namespace)
    secrets = [secret | {"metadata": secret["metadata"] | {"namespace": run.metadata.namespace}}
               for secret in document.secrets]  # fmt: skip
    shares, shapes = _nodes(run, device, found)
    if not any(shares.nodes):
        check_machine(run, Machine.here())
    return Prepared(
        manifest=manifest,
        run=parse_run(manifest),
        secrets=tuple(secrets),
        credentials=credentials,
        faults=tuple(faults),
        shares=shares,
        shapes=shapes,
    )


def _nodes(run: VideoTrainingRun, device: Device, found: Found | None) -> tuple[Shares, tuple[NodeShape, ...]]:
    """Of each pool as many nodes as any of its stages may use. One pool works at a time, so they share the GPUs."""
    pools: dict[str | None, tuple[Pool, int]] = {}
    for stage in run.spec.stages:
        name, nodes = pool_name(run, stage), node_bounds(run, stage).max
        pools[name] = (pool_of(run, stage), max(nodes, pools[name][1] if name in pools else 0))
    if device != "cpu" and len(pools) > 1:
        found = found or find_devices()
    shared: list[tuple[str, ...]] = []
    shapes: list[NodeShape] = []
    told: dict[str, None] = {}
    for pool, nodes in pools.values():
        if pool.gpus_per_node:
            fields = "nodes.max or pool.gpusPerNode of the manifest's spec"
            need = Need(nodes=nodes, per_node=pool.gpus_per_node, fields=fields)
            shares = share_devices(device, need, found, first=len(shared))
            told[shares.summary] = None
            shared += shares.nodes
        else:
            told[f"node-{len(shared)} and on: {nodes} without GPUs"] = None
            shared += [()] * nodes
        offered = {pool.gpu_resource: pool.gpus_per_node} if pool.gpus_per_node else {}
        shapes += [NodeShape(allocatable=offered, labels=pool.node_selector)] * nodes
    return Shares(nodes=tuple(shared), summary="; ".join(told)), tuple(shapes)


def _require_trainer() -> None:
    if find_program(TRAINER) is None:
        raise UsageError(needs("local", f"the program {TRAINER} beside {sys.executable} or on PATH"))


def _external(run: VideoTrainingRun, secrets: Sequence[Json]) -> Credentials | None:
    if not is_external(run, secrets):
        return None
    credentials = external_credentials(run.spec.storage, secrets)
    if credentials.session_token is not None:  # workers have the keys of a Secret, and go on when these have expired
        raise StorageError(
            "spec.storage.credentialsSecret: not set, and this account's AWS credentials expire (they have a session "
            "token); name a Secret in the file, with keys that last as long as the run"
        )
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
    return replace(prepared, manifest=manifest, run=parse_run(manifest), secrets=secrets, credentials=credentials)
