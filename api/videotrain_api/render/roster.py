"""The roster as an annotation."""

from __future__ import annotations

import json

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import Roster
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import ANNOTATION_ROSTER


def roster_text(roster: Roster) -> str:
    """JSON of a roster; one text for all members."""
    return json.dumps(roster.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def render_roster(run: VideoTrainingRun, pod: str, uid: str, text: str) -> Manifest:
    """A patch of the annotation of the very pod that was seen, by name and uid.

    It has no spec: `videotrain_operator.cluster.apply` patches such a pod instead of applying it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod,
            "namespace": run.metadata.namespace,
            "uid": uid,
            "annotations": {ANNOTATION_ROSTER: text},
        },
    }
