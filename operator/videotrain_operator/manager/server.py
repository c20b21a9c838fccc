"""HTTP of the operator: /metrics for Prometheus, /healthz and /readyz for the kubelet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from aiohttp import web

from videotrain_api.metrics import CONTENT_TYPE
from videotrain_operator.http_server import listen, serving
from videotrain_operator.manager.scrapers import Scrapers

HTTP_UNAVAILABLE: Final = 503
MOST_CONNECTIONS: Final = 64
"""Kubelet and scrapers need a few; each may be sent the text of all series."""
Check = Callable[[], str]
"""Tells what is wrong; empty if nothing is."""


@asynccontextmanager
async def serve(
    address: str,
    port: int,
    *,
    metrics: Callable[[], bytes],
    healthy: Check,
    ready: Check,
    scrapers: Scrapers | None = None,
) -> AsyncIterator[int]:
    """Serve until left; yields the port.

    Args:
        address: where to listen; every address if empty.
        port: any free one of 127.0.0.1 if 0; on every address it would be another one for IPv4 than for IPv6.
        metrics: text of /metrics.
        healthy: decides /healthz.
        ready: decides /readyz.
        scrapers: decides who reads /metrics; everybody does without.

    Raises:
        OSError: the port cannot be used.
    """

    async def scrape(request: web.Request) -> web.Response:
        if scrapers is not None:
            status = await scrapers.judge(request.headers.get("Authorization", ""))
            if status is not HTTPStatus.OK:
                asked = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
                return web.Response(status=status, text=f"{status.phrase}\n", headers=asked)
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    app.router.add_get("/healthz", _probe(healthy))
    app.router.add_get("/readyz", _probe(ready))
    listener = listen(address or ("" if port else "127.0.0.1"), port)
    number: int = listener.getsockname()[1]
    async with serving(app, listener, most=MOST_CONNECTIONS):
        yield number


def _probe(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        problem = check()
        return web.Response(text=f"{problem or 'ok'}\n", status=HTTP_UNAVAILABLE if problem else 200)

    return answer
