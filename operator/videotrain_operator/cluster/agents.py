"""Asking agents for their progress."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, Protocol, TypeVar
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
from videotrain_operator.cluster.connections import Connections

TIMEOUT_SECONDS: Final = 2.0
HOP_SECONDS: Final = 1.0
"""To reach an agent that is to pass a roster on, and to hear from it beyond the time that it was given."""
CONNECTIONS: Final = 1024
"""For questions and rosters; as many again are for questions that agents may hold."""
CONNECTIONS_OF_A_RUN: Final = 64
"""Of each of both at most, fewer while many runs use them."""
PASS_SECONDS: Final = 4.0
"""For all questions to the agents of a run that are asked at once; who has not answered by then counts as silent."""
WAIT_SECONDS: Final = 25
"""How long an agent may hold a question until it has news."""
FIRST_SILENCE_SECONDS: Final = 1.0
LONGEST_SILENCE_SECONDS: Final = 30.0
"""An agent that did not answer is left alone for a while, twice as long each time, at most so long."""
Refusal = Literal["unsigned", "unreadable"]
Said = TypeVar("Said")
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
        self._held: aiohttp.ClientSession | None = None
        self._connections = {held: Connections(CONNECTIONS, CONNECTIONS_OF_A_RUN) for held in (False, True)}
        self._silent: dict[str, _Silence] = {}
        self._skew_us: dict[str, int] = {}
        self.refused: dict[Refusal, int] = {"unsigned": 0, "unreadable": 0}
        """Answers that counted as silence, by what was wrong with them."""

    async def __aenter__(self) -> AgentClient:
        self._session, self._held = _connections(), _connections()
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._session, self._held):
            if session is not None:
                await session.close()
        self._session = self._held = None

    def signing_key(self, run_uid: str) -> bytes:
        """The key by which the agents of a run know us, and we them."""
        return derive_signing_key(self.master_key, run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer. Silence proves no death."""
        if self.silent_seconds(address) > 0:
            return None
        return await self._ask(address, "/progress", self._timeout, key, lambda answer: read_progress(answer.body))

    async def changed(self, address: str, known: str, key: bytes) -> str | None:
        """Wait until the agent's facts are no longer those of the tag `known`, or for WAIT_SECONDS.

        Returns:
            The tag of its present facts; None if it does not answer.
        """
        page = f"/progress?wait={WAIT_SECONDS}&known={quote(known, errors='surrogateescape')}"
        return await self._ask(address, page, self._patience, key, lambda answer: answer.etag, held=True)

    async def tell(self, address: str, notice: RosterNotice, key: bytes) -> list[str]:
        """Send a roster to an agent, and through it to others.

        Returns:
            Addresses of the agents that took it; none if this one does not answer, whoever was told by then.
        """
        patience = aiohttp.ClientTimeout(total=notice.seconds + HOP_SECONDS, sock_connect=HOP_SECONDS)
        body = json.dumps(notice.to_wire()).encode()
        receipt = await self._ask(
            address, PATH_ROSTER, patience, key, lambda answer: read_receipt(answer.body), body=body
        )
        return receipt.told if receipt is not None else []

    def silent_seconds(self, address: str) -> float:
        """How long an address that did not answer is left alone."""
        silence = self._silent.get(address)
        return max(0.0, silence.until - time.monotonic()) if silence else 0.0

    def forget(self, address: str) -> None:
        """Another pod may have the address by now."""
        self._silent.pop(address, None)
        self._skew_us.pop(address, None)

    async def _ask(
        self,
        address: str,
        page: str,
        timeout: aiohttp.ClientTimeout,
        key: bytes,
        read: Callable[[Answer], Said],
        *,
        body: bytes | None = None,
        held: bool = False,
    ) -> Said | None:
        """What a signed answer to a signed question says; None if there is none, and the address is left alone then."""
        session = self._held if held else self._session
        assert session is not None, "use `async with AgentClient()`"
        known = self._silent.get(address)
        # Who goes on like this is told of once: a thousand agents would fill the log.
        level = logging.DEBUG if known else logging.WARNING
        try:
            # Whoever waits for a connection was not asked, which is no silence.
            async with self._connections[held].taken(key):
                answer = await self._exchange(session, address, page, timeout, key, body)
                if answer.status == HTTPStatus.UNAUTHORIZED and self._skew_us.get(address):
                    # Its node's clock is known now.
                    answer = await self._exchange(session, address, page, timeout, key, body)
            if answer.status == HTTPStatus.OK:
                said = read(answer)
                self._silent.pop(address, None)
                return said
            _log.debug("agent=%s answer=none status=%d", address, answer.status)
        except SignatureError as error:
            self.refused["unsigned"] += 1
            _log.log(level, "agent=%s answer=refused error=%s", address, error)
        except UnreadableAnswerError as error:
            self.refused["unreadable"] += 1
            _log.log(level, "agent=%s answer=unreadable error=%s", address, error)
        except (aiohttp.ClientError, _TooLongError, TimeoutError, OSError, ValueError) as error:
            _log.debug("agent=%s answer=none error=%s", address, shown(str(error)))
        seconds = min(2 * known.seconds if known else FIRST_SILENCE_SECONDS, self._longest_silence)
        self._silent[address] = _Silence(seconds, time.monotonic() + seconds)
        return None

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        address: str,
        page: str,
        timeout: aiohttp.ClientTimeout,
        key: bytes,
        sent: bytes | None,
    ) -> Answer:
        method = "GET" if sent is None else "POST"
        host = f"[{address}]" if ":" in address else address
        url = URL(f"http://{host}:{PORT_AGENT}{page}", encoded=True)
        nonce, now_us = secrets.token_hex(16), time.time_ns() // 1000
        request = Request(recipient=address, method=method, target=page, body=sent or b"")
        headers = request.sign(key, time_us=now_us + self._skew_us.get(address, 0), nonce=nonce)
        async with (
            asyncio.timeout(timeout.total),
            session.request(
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


def _connections() -> aiohttp.ClientSession:
    # A proxy from the environment must not stand between the operator and its pods, and no agent sets a cookie.
    return aiohttp.ClientSession(
        # Its own limit would let questions wait while their time runs.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5),
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
    )


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
    """Answers by pod name of the (pod name, address) pairs of a run, all asked at once, within PASS_SECONDS."""
    pairs = list(addresses)
    end = asyncio.get_running_loop().time() + PASS_SECONDS

    async def ask(address: str) -> AgentProgress | None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                return await agents.progress(address, key)
        return None

    answers = await asyncio.gather(*(ask(address) for _, address in pairs))
    return {name: answer for (name, _), answer in zip(pairs, answers, strict=True) if answer is not None}
