"""The proxy before an object store: what every kind of request may suffer, from a reset to a lost answer."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from support.fault_proxy import HttpFaultProxy, break_off
from yarl import URL

BURST = 5
"""Answers in a row that a burst refuses; every client here repeats longer than that."""
SLOW_SECONDS = 6.0
"""For a body that trickles."""
SILENT_SECONDS = 300.0
"""At most; a client gives up before."""
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_REFUSALS = {
    "404": (404, "NoSuchKey"),
    "403": (403, "RequestTimeTooSkewed"),
    "409": (409, "ConditionalRequestConflict"),
    "412": (412, "PreconditionFailed"),
    "500": (500, "InternalError"),
    "503 burst": (503, "SlowDown"),
    "200 with an error document": (200, "InternalError"),
    "credentials expired": (400, "ExpiredToken"),
}
BURSTS = ("503 burst", "credentials expired")
"""Faults that meet several requests of a kind in a row."""
FAULTS = ("reset", "cut", *_REFUSALS, "stale list", "flipped bit", "silence", "lost answer", "slow body")
READING_FAULTS = ("reset", "cut", "503 burst", "short body", "wrong length", "flipped bit", "silence", "slow body",
    "credentials expired", "403", "404", "500", "200 with an error document", "lost answer")  # fmt: skip
"""What a reader of many samples meets; `short body` is told to be whole, `wrong length` has bytes behind its own
and says that it is no part."""
KINDS = (
    "LIST", "HEAD", "GET", "ranged GET", "PUT", "conditional PUT", "DELETE",
    "multipart create", "multipart part", "multipart complete",
)  # fmt: skip


@dataclass(frozen=True)
class StorageRequest:
    """A request on its way."""

    kind: str
    """One of KINDS, or the method of any other request."""
    key: str
    """Bucket and key; of a listing, the prefix."""


@dataclass
class Passed:
    """A request that was seen, and what was done to it."""

    request: StorageRequest
    status: int
    fault: str | None


Weather = Callable[[StorageRequest], str | None]
"""Which of FAULTS a request suffers; called in the proxy's own thread, one request after the other."""


def kind_of(method: str, query: dict[str, str], headers: dict[str, str]) -> str:
    """Which of KINDS a request is; `headers` with lower-case names."""
    if method == "GET":
        listed = "list-type" in query or "prefix" in query
        return "LIST" if listed else "ranged GET" if "range" in headers else "GET"
    if method == "PUT" and "uploadid" in query:
        return "multipart part"
    if method == "PUT":
        return "conditional PUT" if "if-none-match" in headers else "PUT"
    if method == "POST":
        kinds = {"uploads": "multipart create", "uploadid": "multipart complete", "delete": "DELETE"}
        return next((kind for name, kind in kinds.items() if name in query), method)
    return method


def request_of(request: web.Request) -> StorageRequest:
    """The kind and object of a request."""
    query = {name.lower(): value for name, value in request.query.items()}
    headers = {name.lower(): value for name, value in request.headers.items()}
    kind = kind_of(request.method, query, headers)
    key = request.path.strip("/")
    return StorageRequest(kind, f"{key}/{query.get('prefix', '')}" if kind == "LIST" else key)


@dataclass
class _Answer:
    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""


class StorageProxy(HttpFaultProxy):
    """Before an S3 server at `upstream`."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.weather: Weather = lambda _: None
        self.delay: Callable[[StorageRequest], float] = lambda _: 0.0
        """Seconds before a request without a fault goes on."""
        self.passed: list[Passed] = []
        """Every request, in the order of their answers."""
        self._upstream = upstream

    async def _connect(self) -> tuple[str, aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(limit=0)
        return self._upstream, aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = request_of(request)
        fault = self.weather(asked)
        seen = Passed(asked, 0, fault)
        self.passed.append(seen)
        if fault is None:
            await asyncio.sleep(self.delay(asked))
            return _plain(request, await self._pass_on(request, seen))
        self.suffered[f"{asked.kind} {fault}"] += 1
        if fault == "reset":
            return break_off(request)
        if fault in _REFUSALS:
            await request.read()
            return _plain(request, _refusal(fault))
        if fault == "silence":
            return await _silence(request)
        answer = await self._pass_on(request, seen)
        return await _spoilt(request, answer, fault)

    async def _pass_on(self, request: web.Request, seen: Passed) -> _Answer:
        # The signature covers the Host header and the path as they were sent.
        url = URL(f"{self._server}{request.raw_path}", encoded=True)
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in _HOP)
        body = await request.read()
        skip = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, skip_auto_headers=skip, allow_redirects=False
        ) as answer:
            kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in _HOP)
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            seen.status = answer.status
            return _Answer(answer.status, kept, await answer.read())


def _plain(request: web.Request, answer: _Answer) -> web.Response:
    body = None if request.method == "HEAD" else answer.body
    return web.Response(status=answer.status, headers=answer.headers, body=body)


def _refusal(fault: str) -> _Answer:
    status, code = _REFUSALS[fault]
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>made by a test</Message></Error>'
    return _Answer(status, CIMultiDict({"Content-Type": "application/xml"}), text.encode())


async def _silence(request: web.Request) -> web.Response:
    """Say nothing until the client gives up."""
    await request.read()
    transport = request.transport
    for _ in range(round(SILENT_SECONDS / 0.2)):
        if transport is None or transport.is_closing():
            break
        await asyncio.sleep(0.2)
    return break_off(request)


async def _spoilt(request: web.Request, answer: _Answer, fault: str) -> web.StreamResponse:
    """An answer that was made, as the fault lets it through."""
    if fault == "lost answer":
        return break_off(request)
    if fault == "stale list":
        # As it was before anything was there.
        answer.body = re.sub(rb"<KeyCount>\d+<", b"<KeyCount>0<", re.sub(rb"<Contents>.*</Contents>", b"", answer.body))
    if fault == "flipped bit" and answer.body:
        middle = len(answer.body) // 2
        answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
    if fault == "short body":
        answer.body = answer.body[: len(answer.body) // 2]
    if fault == "wrong length":
        answer.body += b"more"
        answer.headers.popall("Content-Range", None)
        answer.status = 200
    if fault in ("stale list", "flipped bit", "short body", "wrong length"):
        return _plain(request, answer)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body) or 1
    await response.prepare(request)
    if fault == "cut":
        await response.write(answer.body[: len(answer.body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response
    return await _trickle(response, answer.body)


async def _trickle(response: web.StreamResponse, body: bytes) -> web.StreamResponse:
    parts = 12
    size = max(1, -(-len(body) // parts))
    for start in range(0, len(body), size):
        await asyncio.sleep(SLOW_SECONDS / parts)
        await response.write(body[start : start + size])
    await response.write_eof()
    return response


class ThreadedProxy:
    """A storage proxy with an event loop in a thread of its own, for tests that are not coroutines."""

    def __init__(self, upstream: str) -> None:
        self.proxy = StorageProxy(upstream)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="storage-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self.proxy.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self.proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(60)
