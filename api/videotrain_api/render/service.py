"""The headless service that gives worker pods their names."""

from __future__ import annotations

from videotrain_api.crd.wire import Manifest
from videotrain_api.render.names import metadata, run_labels, selector, service_name
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import PORT_AGENT


def render_service(run: VideoTrainingRun) -> Manifest:
    """Headless; publishes pods that are not ready, since workers look for each other before they are."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, service_name(run), run_labels(run)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector(run),
            "ports": [{"name": "agent", "port": PORT_AGENT, "targetPort": "agent", "protocol": "TCP"}],
        },
    }
