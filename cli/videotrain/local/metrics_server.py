"""HTTP for the operator's metrics: /metrics in the Prometheus text format, and /healthz."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from videotrain_api.metrics import CONTENT_TYPE
from videotrain_operator.telemetry import OperatorMetrics

HOST: Final = "127.0.0.1"


class MetricsPortError(Exception):
    """The port for the metrics cannot be used."""


@asynccontextmanager
async def serve_metrics(metrics: OperatorMetrics, port: int) -> AsyncIterator[str]:
    """Serve until left; yields the URL of the metrics.

    Args:
        metrics: what is served.
        port: port on 127.0.0.1; any free one if 0.

    Raises:
        MetricsPortError: the port is taken.
    """

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape), web.get("/healthz", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise MetricsPortError(f"--metrics-port {port}: {error.strerror}; use another one, or 0") from None
        yield f"http://{HOST}:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()
