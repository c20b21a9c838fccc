"""Asking agents for their progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, Protocol

import aiohttp

from videotrain_api.records import AgentProgress
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import PORT_AGENT

TIMEOUT_SECONDS: Final = 2.0
CONNECTIONS: Final = 128
_log = logging.getLogger(__name__)


class Agents(Protocol):
    """Whoever can ask an agent."""

    async def progress(self, address: str) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer."""


class AgentClient:
    """Asks agents over HTTP. Use it as an async context manager."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentClient:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        # A proxy from the environment must not stand between the operator and its pods.
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def progress(self, address: str) -> AgentProgress | None:
        """The answer of the agent at a pod IP; None if it does not answer. Silence is not evidence of death."""
        assert self._session is not None, "use `async with AgentClient()`"
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{PORT_AGENT}/progress") as response:
                response.raise_for_status()
                return AgentProgress.from_wire(await response.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ManifestError) as error:
            _log.debug("agent=%s answer=none error=%r", address, error)
            return None


async def ask_all(agents: Agents, addresses: Iterable[tuple[str, str]]) -> dict[str, AgentProgress]:
    """Answers by pod name of the (pod name, address) pairs, all asked at once."""
    pairs = list(addresses)
    answers = await asyncio.gather(*(agents.progress(address) for _, address in pairs))
    return {name: answer for (name, _), answer in zip(pairs, answers, strict=True) if answer is not None}
