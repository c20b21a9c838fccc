"""Asking agents for their progress."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

import aiohttp

from videotrain_api.records import AgentProgress
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import PORT_AGENT

TIMEOUT_SECONDS: Final = 2.0
CONNECTIONS: Final = 256
WAIT_SECONDS: Final = 25
"""How long an agent may hold a question until it has news."""
FIRST_SILENCE_SECONDS: Final = 1.0
LONGEST_SILENCE_SECONDS: Final = 30.0
"""An agent that did not answer is left alone for a while, twice as long each time, at most so long."""
_log = logging.getLogger(__name__)


class Agents(Protocol):
    """Whoever can ask an agent."""

    async def progress(self, address: str) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer."""


@dataclass
class _Silence:
    """An address from which no answer came."""

    seconds: float
    until: float


class AgentClient:
    """Asks agents over HTTP. Use it as an async context manager."""

    def __init__(
        self, timeout_seconds: float = TIMEOUT_SECONDS, longest_silence_seconds: float = LONGEST_SILENCE_SECONDS
    ) -> None:
        """Begin without connections; entering opens them.

        Args:
            timeout_seconds: how long an answer may take.
            longest_silence_seconds: how long an agent that keeps silent is left alone at most.
        """
        self._longest_silence = longest_silence_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._patience = aiohttp.ClientTimeout(total=WAIT_SECONDS + timeout_seconds, sock_connect=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._silent: dict[str, _Silence] = {}

    async def __aenter__(self) -> AgentClient:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=5)
        # A proxy from the environment must not stand between the operator and its pods.
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def progress(self, address: str) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer. Silence proves no death."""
        if self.silent_seconds(address) > 0:
            return None
        answer = await self._get(address, "/progress", self._timeout)
        if answer is None:
            return None
        try:
            return AgentProgress.from_wire(json.loads(answer[1]))
        except (ValueError, ManifestError) as error:
            _log.warning("agent=%s answer=unreadable error=%s", address, error)
            return None

    async def changed(self, address: str, known: str) -> str | None:
        """Wait until the agent's facts are no longer those of the tag `known`, or for WAIT_SECONDS.

        Returns:
            The tag of its present facts; None if it does not answer.
        """
        answer = await self._get(address, f"/progress?wait={WAIT_SECONDS}&known={quote(known)}", self._patience)
        return answer[0] if answer else None

    def silent_seconds(self, address: str) -> float:
        """How long an address that did not answer is left alone."""
        silence = self._silent.get(address)
        return max(0.0, silence.until - time.monotonic()) if silence else 0.0

    def forget(self, address: str) -> None:
        """Another pod may have the address by now."""
        self._silent.pop(address, None)

    async def _get(self, address: str, page: str, timeout: aiohttp.ClientTimeout) -> tuple[str, bytes] | None:
        """Tag and body of an answer."""
        assert self._session is not None, "use `async with AgentClient()`"
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{PORT_AGENT}{page}", timeout=timeout) as response:
                response.raise_for_status()
                body = await response.read()
                self._silent.pop(address, None)
                return response.headers.get("ETag", ""), body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.debug("agent=%s answer=none error=%r", address, error)
            before = self._silent.get(address)
            seconds = min(2 * before.seconds if before else FIRST_SILENCE_SECONDS, self._longest_silence)
            self._silent[address] = _Silence(seconds, time.monotonic() + seconds)
            return None


async def ask_all(agents: Agents, addresses: Iterable[tuple[str, str]]) -> dict[str, AgentProgress]:
    """Answers by pod name of the (pod name, address) pairs, all asked at once."""
    pairs = list(addresses)
    answers = await asyncio.gather(*(agents.progress(address) for _, address in pairs))
    return {name: answer for (name, _), answer in zip(pairs, answers, strict=True) if answer is not None}
