"""HTTP of the agent: /progress for the operator, /metrics for Prometheus, /healthz for the kubelet.

What the operator asks is signed with the run's key, and so is the answer; see `videotrain_api.signing`.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from videotrain_api.metrics import CONTENT_TYPE
from videotrain_api.records import AgentProgress, Roster, RosterNotice, RosterReceipt
from videotrain_api.signing import HEADER_NONCE, Answer, Nonces, Request, SignatureError, SkewError
from videotrain_api.vocabulary import PATH_ROSTER
from videotrain_trainer.agent.relay import pass_on

log = logging.getLogger(__name__)


LONGEST_WAIT_SECONDS: Final = 60.0
"""How long a question may be held, whatever it asks for."""
LONGEST_NOTICE: Final = 2 << 20
"""Bytes of a roster and its recipients; of 4,096 pods with the longest names they are less than half of that."""
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Query = dict[str, list[str]]


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class AgentServer:
    """Serves snapshots from a thread of its own.

    `GET /progress?wait=SECONDS&known=TAG` is held until the agent's facts no longer have the tag (the ETag of an
    earlier answer), at most so long: the operator learns of a failure at once without asking all the time.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        key: bytes,
        progress: Callable[[], AgentProgress],
        metrics: Callable[[], bytes],
        healthy: Callable[[], bool],
        take_roster: Callable[[Roster], None],
    ) -> None:
        """Bind the port.

        Args:
            address: where to listen, and whom a signed request must be for.
            port: TCP port.
            key: the run's signing key.
            progress: what /progress tells.
            metrics: text of /metrics.
            healthy: decides /healthz.
            take_roster: given what is sent to PATH_ROSTER, from another thread.

        Raises:
            OSError: the address is not this machine's, or the port is taken.
        """
        self._progress, self._take_roster = progress, take_roster
        self._address, self._key = address, key
        self._nonces, self._taking = Nonces(), threading.Lock()
        self._news = threading.Condition()
        routes: dict[str, Callable[[Asked], Reply]] = {
            "/progress": lambda asked: self._signed(asked, self._tell_progress),
            PATH_ROSTER: lambda asked: self._signed(asked, lambda _: self._hear_roster(asked)),
            "/metrics": lambda _: (200, {"Content-Type": CONTENT_TYPE}, metrics()),
            "/healthz": lambda _: (200, _TEXT, b"ok\n") if healthy() else (503, _TEXT, b"stuck\n"),
        }
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = type("Server", (_Server,), {"address_family": family})
        self._server: ThreadingHTTPServer = server((address, port), _handler(routes))
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def notify(self) -> None:
        """The progress may have changed: look again for those who wait."""
        with self._news:
            self._news.notify_all()

    def _signed(self, asked: Asked, route: Callable[[Query], Reply]) -> Reply:
        """The signed answer of a route to a request that is signed; 401 to any other.

        A request that fails by its time alone gets a signed 401, which tells the operator this node's clock.
        """
        request = Request(recipient=self._address, method=asked.method, target=asked.target, body=asked.body)
        try:
            with self._taking:
                nonce = request.verify(self._key, asked.headers, now_us=_now_us(), nonces=self._nonces)
        except SkewError as error:
            status, head, body = int(HTTPStatus.UNAUTHORIZED), _TEXT, f"{error}\n".encode()
            nonce = asked.headers[HEADER_NONCE]
        except SignatureError as error:
            return HTTPStatus.UNAUTHORIZED, _TEXT, f"{error}\n".encode()
        else:
            status, head, body = route(parse_qs(urlsplit(asked.target).query))
        answer = Answer(status=status, etag=head.get("ETag", ""), body=body)
        return status, head | answer.sign(self._key, nonce, time_us=_now_us()), body

    def _tell_progress(self, query: Query) -> Reply:
        known = query.get("known", [""])[0]
        deadline = time.monotonic() + min(_seconds(query), LONGEST_WAIT_SECONDS)
        answer = self._progress()
        with self._news:
            while answer.tag() == known and (left := deadline - time.monotonic()) > 0:
                self._news.wait(left)
                answer = self._progress()
        head = {"Content-Type": "application/json", "ETag": answer.tag()}
        return 200, head, json.dumps(answer.to_wire()).encode()

    def _hear_roster(self, asked: Asked) -> Reply:
        """Take a roster first, then pass it on: what happens to others must not keep it from this pod."""
        try:
            notice = RosterNotice.model_validate_json(asked.body)
        except ValidationError as error:
            return HTTPStatus.BAD_REQUEST, _TEXT, f"{error}\n".encode()
        self._take_roster(notice.roster)
        receipt = RosterReceipt(told=[self._address, *pass_on(notice, self._key)])
        return HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(receipt.to_wire()).encode()

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class names it
        """Log what went wrong; a client that left while its question was held is nothing to report."""
        if isinstance(sys.exception(), ConnectionError):
            log.debug("%s left before it had its answer", client_address)
        else:
            log.exception("the request of %s failed", client_address)


_TEXT: Final = {"Content-Type": "text/plain"}


def _seconds(query: Query) -> float:
    """The parameter `wait`; 0 if it is absent or no number."""
    try:
        return float(query.get("wait", ["0"])[0])
    except ValueError:
        return 0.0


def _now_us() -> int:
    return time.time_ns() // 1000


def _handler(routes: dict[str, Callable[[Asked], Reply]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that sends nothing must not hold a thread

        def do_POST(self) -> None:
            """Of the one page that takes a body."""
            length = self.headers.get("Content-Length", "")
            if self.path != PATH_ROSTER or not length.isdecimal() or int(length) > LONGEST_NOTICE:
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            self._answer(self.rfile.read(int(length)))

        def do_GET(self) -> None:
            self._answer(b"")

        def _answer(self, sent: bytes) -> None:
            route = routes.get(self.path.partition("?")[0])
            missing = f"no such page; there are {', '.join(routes)}\n".encode()
            asked = Asked(self.command, self.path, cast("Mapping[str, str]", self.headers), sent)
            status, head, body = route(asked) if route else (404, _TEXT, missing)
            self.send_response(status)
            for name, value in head.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            log.debug(format, *args)

    return Handler
