"""Proxies between a client and a real server that refuse, lose, cut, delay and swallow what they are told to.

Here: what every one of them does, and the one before an API server. The one before an object store is `storage_proxy`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web

from videotrain_operator.kube.client import load_configuration

USER_AGENT = "videotrain through a proxy"
"""By which the API server's audit log tells its requests from others."""
LONGEST_BODY = LONGEST_LINE = 64 * 2**20
REFUSALS = {
    403: "Forbidden",
    404: "NotFound",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True)
class Asked:
    """A request on its way."""

    method: str
    path: str
    watch: bool
    query: dict[str, str]


Fault = str
"""A status such as `429`: refused and not passed on. `drop`: the connection breaks, nothing is passed on. `lose`:
passed on, and the connection breaks instead of an answer. `held`: passed on as soon as `released` is set, `late-2.5`:
after so many seconds, both also if whoever asked has gone meanwhile. Of watches: `410`: the version is too old, told at
once;
`expire`: the same as an event in the stream; `cut`: ended without a word after one event; `silence`: stays open and
tells nothing more."""
Weather = Callable[[Asked], Fault | None]


def clear(_: Asked) -> Fault | None:
    """No faults."""
    return None


def every(number: int, faults: Iterable[Fault], watches: Iterable[Fault] = ()) -> Weather:
    """Every so manieth request suffers the next of the faults in turn, and every watch the next of its own."""
    count, turns, watched = itertools.count(1), itertools.cycle(faults), itertools.cycle([*watches, None])

    def weather(asked: Asked) -> Fault | None:
        if asked.watch:
            return next(watched)
        return None if next(count) % number else next(turns)

    return weather


class HttpFaultProxy(ABC):
    """Serves plain HTTP/1.1 on this machine and passes on to one server. An async context manager."""

    def __init__(self) -> None:
        self.suffered: Counter[str] = Counter()
        """How often each fault happened, by kind of request and fault."""
        self._server: str
        self._session: aiohttp.ClientSession
        self._runner: web.AppRunner

    @abstractmethod
    async def _connect(self) -> tuple[str, aiohttp.ClientSession]:
        """URL of the server behind, and the client for it."""

    @abstractmethod
    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        self._server, self._session = await self._connect()
        app = web.Application(client_max_size=LONGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()


class FaultProxy(HttpFaultProxy):
    """Before an API server: passes on as the user of a kubeconfig."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        super().__init__()
        self.weather: Weather = clear
        self.held = 0
        """Late requests that are on their way, or not answered yet."""
        self.released = asyncio.Event()
        """Lets those go on that suffer `held`."""
        self._upstream, self._folder = kubeconfig, folder
        self._streams: set[asyncio.Task[Any]] = set()

    async def _connect(self) -> tuple[str, aiohttp.ClientSession]:
        configuration = await load_configuration(str(self._upstream))
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        tls.load_cert_chain(configuration.cert_file, configuration.key_file)
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        return configuration.host, aiohttp.ClientSession(connector=connector, trust_env=False)

    async def __aexit__(self, *_: object) -> None:
        self.cut_streams()
        await super().__aexit__()

    def kubeconfig(self) -> Path:
        """A kubeconfig that leads through this proxy."""
        path = self._folder / "through-proxy.yaml"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return path

    def cut_streams(self) -> None:
        """End every watch that is open, without a word."""
        for task in list(self._streams):
            task.cancel()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.method, request.path, request.query.get("watch") == "true", dict(request.query))
        fault = self.weather(asked)
        if fault is not None:
            self.suffered[f"{'WATCH' if asked.watch else asked.method} {fault}"] += 1
        if fault == "drop":
            return break_off(request)
        if fault is not None and fault.isdigit():
            return _refusal(int(fault))
        if asked.watch:
            return await self._watch(request, fault)
        late = fault is not None and fault.startswith(("held", "late-"))
        self.held += late
        try:
            if late:
                await request.read()  # while there is somebody to read it from
                seconds = fault.removeprefix("late-")
                await (self.released.wait() if fault == "held" else asyncio.sleep(float(seconds)))
            status, kind, body = await self._pass_on(request)
        except aiohttp.ClientError:
            return break_off(request)
        finally:
            self.held -= late
        return break_off(request) if fault == "lose" else web.Response(status=status, content_type=kind, body=body)

    async def _pass_on(self, request: web.Request) -> tuple[int, str, bytes]:
        url, headers = self._target(request)
        body = await request.read()
        async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
            return answer.status, answer.content_type, await answer.read()

    def _target(self, request: web.Request) -> tuple[Any, dict[str, str]]:
        kept = {k: v for k, v in request.headers.items() if k in ("Accept", "Content-Type")}
        return f"{self._server}{request.raw_path}", kept | {"User-Agent": USER_AGENT}

    async def _watch(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            if fault == "expire":
                await response.write(json.dumps({"type": "ERROR", "object": _status(410)}).encode() + b"\n")
                return response
            await self._stream(request, response, fault)
        except (aiohttp.ClientError, ConnectionError, asyncio.CancelledError):
            break_off(request)
        finally:
            self._streams.discard(task)
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, fault: Fault | None) -> None:
        url, headers = self._target(request)
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, headers=headers, timeout=timeout) as answer:
            while line := await answer.content.readline(max_line_length=LONGEST_LINE):
                if fault == "silence":
                    continue
                await response.write(line)
                if fault == "cut":
                    raise ConnectionResetError


def break_off(request: web.Request) -> web.Response:
    """Reset the connection instead of an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _refusal(code: int) -> web.Response:
    headers = {"Retry-After": "1"} if code in (429, 503) else {}
    return web.json_response(_status(code), status=code, headers=headers)


def _status(code: int) -> dict[str, Any]:
    reason = REFUSALS.get(code, "Expired")
    message = f"{reason}: made by a test"
    return {
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    }  # fmt: skip
