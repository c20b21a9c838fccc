"""What the API server asks process nodes for: logs, commands and ports of their pods, as a kubelet's server answers."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from videotrain.kubelet.exec_session import PROTOCOLS, ExecSession
from videotrain.kubelet.pod import PodHost
from videotrain.kubelet.port_forward import PROTOCOL, Forwarding
from videotrain.kubelet.usage import MetricsApi

_POLL_SECONDS: Final = 0.2
_CHUNK: Final = 64 * 1024


class Credentials(NamedTuple):
    """How the API server and the nodes know each other."""

    certificate: Path
    """That the nodes serve with."""
    key: Path
    authority: Path
    """Signs for clients."""
    client: str
    """Name of the only client that is answered: the API server. Who may run commands here may do all that this
    user may, and the authority signs for other users, too."""


Find = Callable[[str, str], PodHost | None]
"""Namespace and name to a pod that a node serves."""


@asynccontextmanager
async def serving(
    credentials: Credentials, addresses: Iterable[str], find: Find, metrics: MetricsApi
) -> AsyncIterator[dict[str, int]]:
    """Serve on the address of each node; yields the ports, by address.

    Args:
        credentials: of the server and its client.
        addresses: of the nodes.
        find: finds a pod.
        metrics: what pods use; served at each address.

    Raises:
        OSError: an address cannot be used.
    """
    server = _Server(find)
    app = web.Application(middlewares=[_only(credentials.client)])
    for kind in ("exec", "portForward"):
        container = "/{container}" if kind == "exec" else ""
        handler = server.exec if kind == "exec" else server.port_forward
        for uid in ("", "/{uid}"):
            app.router.add_route("*", f"/{kind}/{{namespace}}/{{pod}}{uid}{container}", handler)
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", server.logs)
    app.router.add_get("/healthz", server.healthz)
    metrics.add_to(app)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(credentials.authority))
    tls.load_cert_chain(credentials.certificate, credentials.key)
    tls.verify_mode = ssl.CERT_REQUIRED
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        ports = {}
        for address in addresses:
            site = web.TCPSite(runner, address, 0, ssl_context=tls)
            await site.start()
            ports[address] = int(runner.addresses[-1][1])
        yield ports
    finally:
        await runner.cleanup()


def _only(client: str) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.transport.get_extra_info("peercert") if request.transport else None
        names = dict(pair for part in (shown or {}).get("subject", ()) for pair in part)
        if names.get("commonName") != client:
            raise web.HTTPForbidden(text=f"only {client} is answered here")
        return await handler(request)

    return check


class _Server:
    def __init__(self, find: Find) -> None:
        self._find = find

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def logs(self, request: web.Request) -> web.StreamResponse:
        container = self._pod(request).container(request.match_info["container"])
        query = request.query
        unknown = [
            name for name in ("sinceSeconds", "sinceTime", "timestamps") if query.get(name, "") not in ("", "false")
        ]
        if container is None:
            raise web.HTTPNotFound(text=f"container {request.match_info['container']!r} is not in the pod")
        if unknown:
            raise web.HTTPBadRequest(text=f"{unknown[0]}: process nodes keep no time of a line; use tail")
        response = web.StreamResponse(headers={"Content-Type": "text/plain", "Transfer-Encoding": "chunked"})
        await response.prepare(request)
        left = int(query["limitBytes"]) if "limitBytes" in query else None
        tail = int(query["tailLines"]) if "tailLines" in query else None
        # A container that was started again goes on in the same file, so `previous` is in it, too.
        runs = (lambda: container.process is not None) if query.get("follow") == "true" else (lambda: False)
        async for data in _log(container.log, tail, runs):
            await response.write(data if left is None else data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                break
        await response.write_eof()
        return response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        container = self._pod(request).container(request.match_info["container"])
        if container is None or container.surrounding is None or container.process is None:
            raise web.HTTPBadRequest(text=f"container {request.match_info['container']!r} does not run")
        command = request.query.getall("command", [])
        if not command:
            raise web.HTTPBadRequest(text="command: required")
        process = container.process
        socket = web.WebSocketResponse(protocols=PROTOCOLS)
        await socket.prepare(request)
        wanted = {name: request.query.get(name) in ("1", "true") for name in ("input", "tty")}
        session = ExecSession(socket, command, container.surrounding, tty=wanted["tty"])
        await session.run(process.wait, takes_input=wanted["input"])
        return socket

    async def port_forward(self, request: web.Request) -> web.StreamResponse:
        pod = self._pod(request)
        socket = web.WebSocketResponse(protocols=(PROTOCOL,))
        await socket.prepare(request)
        await Forwarding(socket, pod.address).run()
        return socket

    def _pod(self, request: web.Request) -> PodHost:
        found = self._find(request.match_info["namespace"], request.match_info["pod"])
        if found is None:
            raise web.HTTPNotFound(text="the pod is not served by this node")
        return found


async def _log(path: Path, tail: int | None, runs: Callable[[], bool]) -> AsyncIterator[bytes]:
    """What a log file holds, from its last lines on if so asked, and what comes while its container runs."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if tail is not None:
            last = b"".join(await asyncio.to_thread(deque, file, tail))
            for start in range(0, len(last), _CHUNK):
                yield last[start : start + _CHUNK]
        while True:
            goes_on = runs()  # before the read: what is written in between is read next
            while data := file.read(_CHUNK):
                yield data
            if not goes_on:
                return
            await asyncio.sleep(_POLL_SECONDS)
