"""A small API server over real HTTP: discovery, lists of what it holds, watches with bookmarks; it can fall silent."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from aiohttp import web

from videotrain_api.signing import KEY_BYTES
from videotrain_api.vocabulary import API_VERSION, BUDGET_KIND, BUDGET_PLURAL, GROUP, KIND, PLURAL, SIGNING_KEY

Json = dict[str, Any]
VERSION = API_VERSION.removeprefix(f"{GROUP}/")
BOOKMARK_SECONDS = 0.02
GROUPS = {GROUP: VERSION, "apiextensions.k8s.io": "v1", "admissionregistration.k8s.io": "v1", "kopf.dev": "v1",
          "networking.k8s.io": "v1"}  # fmt: skip
KINDS = {
    "v1": {"pods": "Pod", "services": "Service", "configmaps": "ConfigMap", "nodes": "Node", "namespaces": "Namespace",
           "events": "Event"},
    API_VERSION: {PLURAL: KIND, BUDGET_PLURAL: BUDGET_KIND},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
}  # fmt: skip


class SmallApi:
    """Serves plain HTTP on this machine. An async context manager."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        """Resources (plural) of which nothing is told: requests get no answer and watches no line."""
        self.objects: dict[str, list[Json]] = {}
        """By resource."""
        self.refused: dict[str, int] = {}
        """HTTP status instead of an answer, by resource."""
        self.logs: dict[str, str] = {}
        """By pod; a pod without one has a container that waits."""
        self.written: list[str] = []
        """Requests that are not reads."""
        self.asked: list[str] = []
        """Lists, by path and query."""
        self.page: int | None = None
        """Objects of one page of a list; all if None."""
        self._told: dict[str, list[str]] = {}

    async def __aenter__(self) -> SmallApi:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._runner.cleanup()

    def kubeconfig(self, folder: Path) -> Path:
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "small",
            "clusters": [{"name": "small", "cluster": {"server": url}}],
            "users": [{"name": "small", "user": {}}],
            "contexts": [{"name": "small", "context": {"cluster": "small", "user": "small"}}],
        }  # fmt: skip
        path = folder / "kubeconfig.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def tell(self, resource: str, type_: str, body: Json) -> None:
        """Send an event on every watch of a resource, also on those that begin later."""
        self.tell_text(resource, json.dumps({"type": type_, "object": body}))

    def tell_text(self, resource: str, line: str) -> None:
        """The same with the line as it is sent."""
        self._told.setdefault(resource, []).append(line)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path, resource = request.path, request.path.rsplit("/", 1)[-1]
        if request.method != "GET":
            self.written.append(f"{request.method} {path}")
            raise web.HTTPMethodNotAllowed(request.method, ["GET"])
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            groups = [
                {"name": name, "preferredVersion": {"version": version}, "versions": [{"version": version}]}
                for name, version in GROUPS.items()
            ]
            return web.json_response({"groups": groups})
        for group, kinds in KINDS.items():
            if path == (f"/api/{group}" if group == "v1" else f"/apis/{group}"):
                return web.json_response({"resources": [_resource(*item) for item in kinds.items()]})
        if path.startswith("/apis/") and path.count("/") == 3:
            return web.json_response({"resources": []})
        if resource == "log":
            pod = path.rsplit("/", 2)[1]
            if pod in self.logs:
                return web.Response(text=self.logs[pod])
            return web.json_response({"kind": "Status", "code": 400, "message": f"{pod} waits"}, status=400)
        if "/secrets/" in path:
            head = {"name": resource, "resourceVersion": "1"}
            data = {SIGNING_KEY: base64.b64encode(bytes(KEY_BYTES)).decode()}
            return web.json_response({"kind": "Secret", "apiVersion": "v1", "metadata": head, "data": data})
        await self._while_silent(resource)
        if resource in self.refused:
            status = self.refused[resource]
            return web.json_response({"kind": "Status", "code": status, "message": "refused"}, status=status)
        if "watch" in request.query:
            return await self._watch(request, resource)
        self.asked.append(request.path_qs)
        items, begin = self.objects.get(resource, []), int(request.query.get("continue", "0"))
        end = begin + (self.page or len(items))
        more = {"continue": str(end)} if end < len(items) else {}
        return web.json_response({"metadata": {"resourceVersion": "1"} | more, "items": items[begin:end]})

    async def _while_silent(self, resource: str) -> None:
        while resource in self.silent:
            await asyncio.sleep(BOOKMARK_SECONDS)

    async def _watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        kind = next(kinds[resource] for kinds in KINDS.values() if resource in kinds)
        bookmark = json.dumps({"type": "BOOKMARK", "object": {"kind": kind, "metadata": {"resourceVersion": "1"}}})
        end, told = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds", "60")), 0
        with suppress(ConnectionResetError):
            while resource not in self.refused and asyncio.get_running_loop().time() < end:
                await self._while_silent(resource)
                news = self._told.get(resource, [])[told:]
                told += len(news)
                await response.write("".join(f"{line}\n" for line in (*news, bookmark)).encode())
                await asyncio.sleep(BOOKMARK_SECONDS)
        return response


def _resource(plural: str, kind: str) -> Json:
    verbs = ["get", "list", "watch", "patch", "create", "delete", "update"]
    return {
        "name": plural, "singularName": kind.lower(), "kind": kind, "verbs": verbs,
        "namespaced": kind not in (BUDGET_KIND, "Node", "Namespace", "CustomResourceDefinition"),
    }  # fmt: skip
