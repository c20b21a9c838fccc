"""A run as TorchX's AppDef: its roles for people, and the manifest that the scheduler sends."""

from __future__ import annotations

import json
from typing import Final

from torchx.specs import AppDef, Resource, Role

from videotrain_api.resource.trainrun import TRAINER_IMAGE, VideoTrainingRun, node_bounds
from videotrain_api.schema import Json
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import CONTAINER_WORKER

MANIFEST: Final = "videotrain/manifest"
"""Key of AppDef.metadata: the VideoTrainingRun as JSON."""


class NotARun(ValueError):
    """An AppDef that no component of ours made."""


def app_of(document: Json) -> AppDef:
    """The application of a manifest.

    Args:
        document: a VideoTrainingRun.

    Raises:
        ManifestError: the manifest is refused; `problems` lists everything wrong with it.
    """
    run = parse_run(document)
    return AppDef(run.metadata.name, [worker_role(run)], {MANIFEST: json.dumps(document, ensure_ascii=False)})


def manifest_of(app: AppDef) -> Json:
    """The VideoTrainingRun of an application.

    Raises:
        NotARun: it comes from another component, such as dist.ddp.
    """
    try:
        document: Json = json.loads(app.metadata[MANIFEST])
    except KeyError:
        raise NotARun(
            f"application {app.name!r}: the scheduler videotrain runs VideoTrainingRuns, and this component makes "
            "none; use vtr.run, vtr.finetune or vtr.sample, or another scheduler (-s)"
        ) from None
    return document


def worker_role(run: VideoTrainingRun) -> Role:
    """The worker pods at the most nodes that a stage may have; what they request is the pod template's to say."""
    bounds = [node_bounds(run, stage) for stage in run.spec.stages]
    return Role(
        name=CONTAINER_WORKER,
        image=run.spec.image or TRAINER_IMAGE,
        min_replicas=min(bound.min for bound in bounds),
        num_replicas=max(bound.max for bound in bounds),
        max_retries=run.spec.failure_policy.limits.infrastructure,
        resource=Resource(cpu=-1, gpu=run.spec.pool.gpus_per_node, memMB=-1),
    )
