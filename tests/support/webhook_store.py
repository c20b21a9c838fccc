"""The two objects that the webhook keeps, with the preconditions of an API server, for tests without one."""

from __future__ import annotations

import base64
import copy
from collections.abc import Awaitable, Callable
from typing import Any

from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError

Json = dict[str, Any]
SECRET, CONFIGURATION = "webhook-tls", "videotrain"


class WebhookStore:
    """The verbs of KubeClient on a Secret and a ValidatingWebhookConfiguration; every write is counted."""

    def __init__(self, *, configured: bool = True) -> None:
        self.objects: dict[str, Json] = {}
        self.writes: list[str] = []
        self.before_write: Callable[[], Awaitable[None]] | None = None
        """Awaited before the next write, once; what it does comes first."""
        self.down = False
        if configured:
            hooks = [{"name": name, "clientConfig": {"service": {}}} for name in ("a", "b")]
            head = {"name": CONFIGURATION, "resourceVersion": "1"}
            self.objects["ValidatingWebhookConfiguration"] = {"metadata": head, "webhooks": hooks}

    @property
    def secret(self) -> Json:
        """Its decoded data."""
        return {name: base64.b64decode(value) for name, value in self.objects["Secret"]["data"].items()}

    @property
    def bundles(self) -> list[bytes]:
        """The decoded caBundle of each webhook."""
        hooks = self.objects["ValidatingWebhookConfiguration"]["webhooks"]
        return [base64.b64decode(hook["clientConfig"].get("caBundle", "")) for hook in hooks]

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        self._reach()
        if kind not in self.objects:
            raise NotFound(name)
        return copy.deepcopy(self.objects[kind])

    async def create(self, manifest: Json, manager: str, namespace: str = "") -> Json:
        await self._before()
        if manifest["kind"] in self.objects:
            raise Conflict("it exists")
        return self._store(manifest["kind"], copy.deepcopy(manifest), 0)

    async def replace(self, manifest: Json, *, subresource: str = "", manager: str = "") -> Json:
        await self._before()
        old = self.objects.get(manifest["kind"])
        if old is None:
            raise NotFound("it is gone")
        if manifest["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise Conflict("it was written")
        return self._store(manifest["kind"], copy.deepcopy(manifest), int(old["metadata"]["resourceVersion"]))

    async def patch(self, kind: str, namespace: str, name: str, patch: Any, **_: Any) -> Json:
        await self._before()
        body = copy.deepcopy(self.objects[kind])
        for step in patch:
            *parents, last = step["path"].strip("/").split("/")
            place: Any = body
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            if step["op"] == "test" and place[last] != step["value"]:
                raise ApiError(422, "Invalid", "the test failed")
            if step["op"] == "add":
                place[last] = step["value"]
        return self._store(kind, body, int(body["metadata"]["resourceVersion"]))

    def _reach(self) -> None:
        if self.down:
            raise ApiError(503, "ServiceUnavailable", "the API server is away")

    async def _before(self) -> None:
        self._reach()
        act, self.before_write = self.before_write, None
        if act is not None:
            await act()

    def _store(self, kind: str, body: Json, version: int) -> Json:
        body["metadata"]["resourceVersion"] = str(version + 1)
        self.objects[kind] = body
        self.writes.append(kind)
        return copy.deepcopy(body)
