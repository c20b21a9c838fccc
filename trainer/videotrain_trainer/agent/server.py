"""HTTP of the agent: /progress for the operator, /metrics for Prometheus, /healthz for the kubelet."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from videotrain_api.metrics import CONTENT_TYPE
from videotrain_api.records import AgentProgress

log = logging.getLogger(__name__)


class AgentServer:
    """Serves snapshots from a thread of its own."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        progress: Callable[[], AgentProgress],
        metrics: Callable[[], bytes],
        healthy: Callable[[], bool],
    ) -> None:
        """Bind the port.

        Raises:
            OSError: the address is not this machine's, or the port is taken.
        """
        routes: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/progress": lambda: (200, "application/json", json.dumps(progress().to_wire()).encode()),
            "/metrics": lambda: (200, CONTENT_TYPE, metrics()),
            "/healthz": lambda: (200, "text/plain", b"ok\n") if healthy() else (503, "text/plain", b"stuck\n"),
        }
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = type("Server", (ThreadingHTTPServer,), {"address_family": family, "daemon_threads": True})
        self._server: ThreadingHTTPServer = server((address, port), _handler(routes))
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()


def _handler(routes: dict[str, Callable[[], tuple[int, str, bytes]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that sends nothing must not hold a thread

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            missing = f"no such page; there are {', '.join(routes)}\n".encode()
            status, content_type, body = route() if route else (404, "text/plain", missing)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            log.debug(format, *args)

    return Handler
