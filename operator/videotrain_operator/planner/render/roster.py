"""The roster as an annotation."""

from __future__ import annotations

import json

from videotrain_api.records import Roster
from videotrain_api.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import ANNOTATION_ROSTER
from videotrain_operator.planner.decision import Manifest
from videotrain_operator.planner.observed import PodView


def roster_text(roster: Roster) -> str:
    """JSON of a roster; one text for all members."""
    return json.dumps(roster.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def render_roster(run: VideoTrainingRun, pod: PodView, text: str) -> Manifest:
    """A patch of the annotation of the very pod that was seen. It has no spec: see cluster.apply."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": run.metadata.namespace,
            "uid": pod.uid,
            "annotations": {ANNOTATION_ROSTER: text},
        },
    }
