"""The Secret by which the worker pods of a run know its signing key."""

from __future__ import annotations

import base64

from videotrain_api.crd.wire import Manifest
from videotrain_api.render.names import key_name, metadata, run_labels
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import SIGNING_KEY


def render_key(run: VideoTrainingRun, key: bytes) -> Manifest:
    """Immutable: the signing key of the run."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(run, key_name(run, key), run_labels(run)),
        "type": "Opaque",
        "immutable": True,
        "data": {SIGNING_KEY: base64.b64encode(key).decode()},
    }
