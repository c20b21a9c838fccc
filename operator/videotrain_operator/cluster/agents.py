"""Asking agents for their progress."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from videotrain_api.records import AgentProgress, RosterNotice
from videotrain_api.signing import Answer, Request, SignatureError, derive_signing_key
from videotrain_api.vocabulary import PATH_ROSTER, PORT_AGENT
from videotrain_operator.cluster.answers import (
    LARGEST_ANSWER,
    UnreadableAnswerError,
    read_progress,
    read_receipt,
    shown,
)

TIMEOUT_SECONDS: Final = 2.0
HOP_SECONDS: Final = 1.0
"""To reach an agent that is to pass a roster on, and to hear from it beyond the time that it was given."""
CONNECTIONS: Final = 256
WAIT_SECONDS: Final = 25
"""How long an agent may hold a question until it has news."""
FIRST_SILENCE_SECONDS: Final = 1.0
LONGEST_SILENCE_SECONDS: Final = 30.0
"""An agent that did not answer is left alone for a while, twice as long each time, at most so long."""
Refusal = Literal["unsigned", "unreadable"]
_log = logging.getLogger(__name__)


class Agents(Protocol):
    """Whoever can ask an agent."""

    def signing_key(self, run_uid: str) -> bytes:
        """The key by which the agents of a run know us, and we them."""

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer, or not under its run's signing key."""


@dataclass
class _Silence:
    """An address from which no answer came."""

    seconds: float
    until: float


class AgentClient:
    """Asks agents over HTTP. Use it as an async context manager.

    An agent's image is the user's: no more is read of it than an honest one says, no redirect is followed and nothing
    is decompressed. What is not signed under the run's key counts as silence.
    """

    def __init__(
        self,
        master_key: bytes = b"",
        timeout_seconds: float = TIMEOUT_SECONDS,
        longest_silence_seconds: float = LONGEST_SILENCE_SECONDS,
    ) -> None:
        """Begin without connections; entering opens them.

        Args:
            master_key: the signing keys of the runs are derived from it; empty while it is not known, and until then
                there is no key to ask with.
            timeout_seconds: how long an answer may take, to its last byte.
            longest_silence_seconds: how long an agent that keeps silent is left alone at most.
        """
        self.master_key = master_key
        self._longest_silence = longest_silence_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._patience = aiohttp.ClientTimeout(total=WAIT_SECONDS + timeout_seconds, sock_connect=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._silent: dict[str, _Silence] = {}
        self._skew_us: dict[str, int] = {}
        self.refused: dict[Refusal, int] = {"unsigned": 0, "unreadable": 0}
        """Answers that counted as silence, by what was wrong with them."""

    async def __aenter__(self) -> AgentClient:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=5)
        # A proxy from the environment must not stand between the operator and its pods, and no agent sets a cookie.
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def signing_key(self, run_uid: str) -> bytes:
        """The key by which the agents of a run know us, and we them."""
        return derive_signing_key(self.master_key, run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer. Silence proves no death."""
        if self.silent_seconds(address) > 0:
            return None
        answer = await self._get(address, "/progress", self._timeout, key)
        if answer is None:
            return None
        try:
            return read_progress(answer.body)
        except UnreadableAnswerError as error:
            self.refused["unreadable"] += 1
            _log.warning("agent=%s answer=unreadable error=%s", address, error)
            return None

    async def changed(self, address: str, known: str, key: bytes) -> str | None:
        """Wait until the agent's facts are no longer those of the tag `known`, or for WAIT_SECONDS.

        Returns:
            The tag of its present facts; None if it does not answer.
        """
        page = f"/progress?wait={WAIT_SECONDS}&known={quote(known)}"
        answer = await self._get(address, page, self._patience, key)
        return answer.etag if answer else None

    async def tell(self, address: str, notice: RosterNotice, key: bytes) -> list[str]:
        """Send a roster to an agent, and through it to others.

        Returns:
            Addresses of the agents that took it; none if this one does not answer, whoever was told by then.
        """
        patience = aiohttp.ClientTimeout(total=notice.seconds + HOP_SECONDS, sock_connect=HOP_SECONDS)
        body = json.dumps(notice.to_wire()).encode()
        answer = await self._get(address, PATH_ROSTER, patience, key, body)
        try:
            return read_receipt(answer.body).told if answer is not None else []
        except UnreadableAnswerError as error:
            self.refused["unreadable"] += 1
            _log.warning("agent=%s answer=unreadable error=%s", address, error)
            return []

    def silent_seconds(self, address: str) -> float:
        """How long an address that did not answer is left alone."""
        silence = self._silent.get(address)
        return max(0.0, silence.until - time.monotonic()) if silence else 0.0

    def forget(self, address: str) -> None:
        """Another pod may have the address by now."""
        self._silent.pop(address, None)
        self._skew_us.pop(address, None)

    async def _get(
        self, address: str, page: str, timeout: aiohttp.ClientTimeout, key: bytes, body: bytes | None = None
    ) -> Answer | None:
        """A signed answer to a signed question; None if there is none, after which the address is left alone."""
        try:
            answer = await self._exchange(address, page, timeout, key, body)
            if answer.status == HTTPStatus.UNAUTHORIZED and self._skew_us.get(address):
                answer = await self._exchange(address, page, timeout, key, body)  # its node's clock is known now
            if answer.status == HTTPStatus.OK:
                self._silent.pop(address, None)
                return answer
            _log.debug("agent=%s answer=none status=%d", address, answer.status)
        except SignatureError as error:
            self.refused["unsigned"] += 1
            _log.warning("agent=%s answer=refused error=%s", address, error)
        except (aiohttp.ClientError, _TooLongError, TimeoutError, OSError, ValueError) as error:
            _log.debug("agent=%s answer=none error=%s", address, shown(str(error)))
        before = self._silent.get(address)
        seconds = min(2 * before.seconds if before else FIRST_SILENCE_SECONDS, self._longest_silence)
        self._silent[address] = _Silence(seconds, time.monotonic() + seconds)
        return None

    async def _exchange(
        self, address: str, page: str, timeout: aiohttp.ClientTimeout, key: bytes, sent: bytes | None
    ) -> Answer:
        method = "GET" if sent is None else "POST"
        assert self._session is not None, "use `async with AgentClient()`"
        host = f"[{address}]" if ":" in address else address
        url = URL(f"http://{host}:{PORT_AGENT}{page}", encoded=True)
        nonce, now_us = secrets.token_hex(16), time.time_ns() // 1000
        request = Request(recipient=address, method=method, target=page, body=sent or b"")
        headers = request.sign(key, time_us=now_us + self._skew_us.get(address, 0), nonce=nonce)
        async with (
            asyncio.timeout(timeout.total),
            self._session.request(
                method, url, data=sent, timeout=timeout, headers=headers, allow_redirects=False
            ) as response,
        ):
            body = await _read(response.content, LARGEST_ANSWER)
            answer = Answer(status=response.status, etag=response.headers.get("ETag", ""), body=body)
            there_us = answer.verify(key, nonce, response.headers)
        # The next request is signed for the clock of the agent's node, if that one refused ours.
        skew_us = there_us - now_us
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self._skew_us[address] = skew_us
        return answer


class _TooLongError(Exception):
    """More came than an honest agent says."""


async def _read(content: aiohttp.StreamReader, most: int) -> bytes:
    """The whole body; the connection is closed by whoever raises."""
    body = bytearray()
    async for part in content.iter_any():
        body += part
        if len(body) > most:
            raise _TooLongError(f"the answer is longer than {most} bytes")
    return bytes(body)


async def ask_all(agents: Agents, key: bytes, addresses: Iterable[tuple[str, str]]) -> dict[str, AgentProgress]:
    """Answers by pod name of the (pod name, address) pairs of a run, all asked at once."""
    pairs = list(addresses)
    answers = await asyncio.gather(*(agents.progress(address, key) for _, address in pairs))
    return {name: answer for (name, _), answer in zip(pairs, answers, strict=True) if answer is not None}
