"""Config maps: the frozen configuration and the ledger."""

from __future__ import annotations

import json
from typing import Any

from videotrain_api.crd.wire import Manifest
from videotrain_api.render.names import ledger_name, metadata, run_labels
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import LEDGER_KEY


def render_config_map(run: VideoTrainingRun, name: str, data: dict[str, str]) -> Manifest:
    """Immutable: the frozen configuration of every stage."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, name, run_labels(run)),
        "immutable": True,
        "data": data,
    }


def render_ledger(run: VideoTrainingRun, document: dict[str, Any], resource_version: str | None) -> Manifest:
    """The ledger; refused by the API server if somebody else wrote it since it was read."""
    head = metadata(run, ledger_name(run.metadata.name), run_labels(run))
    if resource_version:
        head["resourceVersion"] = resource_version
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": {LEDGER_KEY: text}}
