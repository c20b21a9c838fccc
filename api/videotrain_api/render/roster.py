"""The roster of a run as a config map that its worker pods mount."""

from __future__ import annotations

import json

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import Roster
from videotrain_api.render.names import metadata, roster_name, run_labels
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import ROSTER_KEY


def roster_text(roster: Roster) -> str:
    """JSON of a roster: what the config map holds and what agents are sent."""
    return json.dumps(roster.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def render_roster(run: VideoTrainingRun, roster: Roster | None, resource_version: str | None) -> Manifest:
    """The config map, which exists before the pods that mount it.

    Args:
        run: the run.
        roster: None before the first generation.
        resource_version: of the config map as it was read; the API server refuses the write if somebody wrote it since,
            so of two operators only one begins a generation. None if there is none yet.
    """
    head = metadata(run, roster_name(run.metadata.name), run_labels(run))
    if resource_version:
        head["resourceVersion"] = resource_version
    data = {ROSTER_KEY: roster_text(roster) if roster is not None else ""}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": data}
