"""Names and labels of everything that belongs to a run."""

from __future__ import annotations

from typing import Final

from videotrain_api.crd.wire import Manifest
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.signing import key_digest
from videotrain_api.vocabulary import (
    API_VERSION,
    FIELD_MANAGER,
    KIND,
    LABEL_COST_CENTER,
    LABEL_INDEX,
    LABEL_RUN,
    LABEL_RUN_UID,
    LABEL_TEAM,
)

POD_SEPARATOR: Final = "-w"
"""Between the run's name and the index in the name of a worker pod."""


def pod_name(run: str, index: int) -> str:
    """Worker pod by index, of the run of that name."""
    return f"{run}{POD_SEPARATOR}{index}"


def policy_name(run: str) -> str:
    """Network policy of the worker pods of the run of that name."""
    return f"{run}-workers"


def config_map_name(run: VideoTrainingRun, digest: str) -> str:
    """Immutable config map with the frozen stage configurations."""
    return f"{run.metadata.name}-config-{digest}"


def key_name(run: VideoTrainingRun, key: bytes | None = None) -> str:
    """Secret with the run's signing key; without the key, what its name begins with.

    The name tells keys apart, since the Secret can neither be changed nor read by who makes it: pods of a run that was
    made again under its name, or after the operator got another master key, never mount the key of before.
    """
    return f"{run.metadata.name}-key" + (f"-{key_digest(key)}" if key else "")


def ledger_name(run: str) -> str:
    """Config map with the ledger of the run of that name."""
    return f"{run}-ledger"


def bill_name(uid: str) -> str:
    """Config map, in the operator's namespace, with the bill of the run of that uid."""
    return f"videotrain-bill-{uid}"


def roster_name(run: str) -> str:
    """Config map with the roster of the run of that name."""
    return f"{run}-roster"


def run_labels(run: VideoTrainingRun) -> dict[str, str]:
    """Labels of every owned object; team and cost center are taken from the run."""
    labels = {
        "app.kubernetes.io/name": "videotrain",
        "app.kubernetes.io/instance": run.metadata.name,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        LABEL_RUN: run.metadata.name,
        LABEL_RUN_UID: run.metadata.uid or "",
    }
    passed_on = (LABEL_TEAM, LABEL_COST_CENTER)
    return labels | {name: run.metadata.labels[name] for name in passed_on if name in run.metadata.labels}


def worker_labels(run: VideoTrainingRun, index: int) -> dict[str, str]:
    """Labels of a worker pod."""
    return run_labels(run) | {"app.kubernetes.io/component": "worker", LABEL_INDEX: str(index)}


def selector(run: VideoTrainingRun) -> dict[str, str]:
    """Labels by which the worker pods of this very run are found."""
    return {LABEL_RUN: run.metadata.name, LABEL_RUN_UID: run.metadata.uid or ""}


def metadata(run: VideoTrainingRun, name: str, labels: dict[str, str]) -> Manifest:
    """Metadata of an owned object; it is deleted with the run."""
    data: Manifest = {"name": name, "namespace": run.metadata.namespace, "labels": labels}
    if run.metadata.uid:
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": run.metadata.name, "uid": run.metadata.uid}
        data["ownerReferences"] = [owner | {"controller": True, "blockOwnerDeletion": True}]
    return data
