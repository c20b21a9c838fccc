"""Events about pods, written beside everything else, so that no pod waits for a slow API server."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Final

from videotrain.clock import utc_now
from videotrain.kubelet.status import now
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

_log = logging.getLogger(__name__)

COMPONENT: Final = "videotrain-process-node"
_BACKLOG: Final = 1000


class Events:
    """Records what people should know about a pod."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._waiting: asyncio.Queue[Json] = asyncio.Queue(_BACKLOG)

    def warn(self, pod: Json, reason: str, message: str) -> None:
        """Record a warning. It is logged as well, and only logged when too many wait to be written."""
        head = pod["metadata"]
        _log.warning("%s/%s: %s: %s", head["namespace"], head["name"], reason, message)
        if not self._waiting.full():
            self._waiting.put_nowait(_event(pod, reason, message))

    async def write(self) -> None:
        """Write them in turn until cancelled; one that the API server does not take is dropped."""
        while True:
            event = await self._waiting.get()
            try:
                await self._client.create(event, COMPONENT)
            except (ApiError, Conflict, NotFound) as error:
                _log.warning("event %s is not recorded: %s", event["metadata"]["name"], error)


def _event(pod: Json, reason: str, message: str) -> Json:
    head, at, node = pod["metadata"], now(), pod["spec"]["nodeName"]
    regarding = {"apiVersion": "v1", "kind": "Pod", "namespace": head["namespace"], "name": head["name"]}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{head['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": head["namespace"]},
        "involvedObject": regarding | {"uid": head["uid"]},
        "type": "Warning",
        "reason": reason,
        "message": message[:1024],
        "source": {"component": COMPONENT, "host": node},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "eventTime": utc_now(),
        "count": 1,
        "action": reason,
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
    }
