"""Labels and annotations by which Kueue admits the worker pods of a run together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.vocabulary import (
    ANNOTATION_GROUP_SIZE,
    ANNOTATION_RETRIABLE,
    ANNOTATION_ROLE_HASH,
    LABEL_GROUP_PLACE,
    LABEL_POD_GROUP,
    LABEL_QUEUE,
    LABEL_QUEUE_PRIORITY,
)

FINAL: Final = {ANNOTATION_RETRIABLE: "false"}
"""Annotation of a pod that nobody will replace."""
ROLE: Final = "worker"
UID_LETTERS: Final = 5


@dataclass(frozen=True, kw_only=True)
class PodGroup:
    """Pods that are admitted together. Kueue never lets the size of a group change, so another size needs another
    name.
    """

    name: str
    """Name of the group, and so of Kueue's Workload; unique in the namespace, at most 63 characters."""
    size: int
    """How many pods it has."""
    place: int = 0
    """Which of them: with topology-aware scheduling, neighbouring places get neighbouring nodes. Kueue refuses a group
    with a place that is not below its size, so the index of the pod would not do."""
    retriable: bool = True
    """A failed pod may be replaced within the group and keeps its quota; False lets the group finish instead."""


def pod_group(run: VideoTrainingRun, attempt: int = 1, size: int | None = None) -> PodGroup:
    """The group of an attempt: of the most nodes that the first stage may use, unless `size` says otherwise.

    A run that is made again under a name finds the Workloads of its predecessor: the name tells them apart.
    """
    most = node_counts(node_bounds(run, run.spec.stages[0]))[-1]
    uid = f"-{run.metadata.uid[:UID_LETTERS]}" if run.metadata.uid else ""
    return PodGroup(name=f"{run.metadata.name}{uid}-a{attempt}", size=most if size is None else size)


def queue_labels(run: VideoTrainingRun, group: PodGroup) -> dict[str, str]:
    """Labels of a queued pod; none if the run has no queue."""
    queue = run.spec.queue
    if queue is None:
        return {}
    labels = {LABEL_QUEUE: queue.name, LABEL_POD_GROUP: group.name, LABEL_GROUP_PLACE: str(group.place)}
    return labels | ({LABEL_QUEUE_PRIORITY: queue.priority_class} if queue.priority_class else {})


def queue_annotations(run: VideoTrainingRun, group: PodGroup) -> dict[str, str]:
    """Annotations of a queued pod; none if the run has no queue."""
    if run.spec.queue is None:
        return {}
    annotations = {
        ANNOTATION_GROUP_SIZE: str(group.size),
        # Kueue would derive it from the pod's shape, and refuse a replacement that has to avoid a bad node.
        ANNOTATION_ROLE_HASH: ROLE,
    }
    return annotations | ({} if group.retriable else FINAL)
