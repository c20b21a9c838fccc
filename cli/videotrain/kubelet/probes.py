"""Startup, liveness and readiness probes of a container, by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp

from videotrain.processes.podfiles import ContainerConfigError
from videotrain.tasks import end
from videotrain_api.schema import Json

PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_WELL: Final = range(200, 400)


class Probes:
    """Asks a running container how it is, until cancelled."""

    def __init__(self, container: Json, address: str, on_change: Callable[[bool, bool], None]) -> None:
        """Check what the container asks for.

        Args:
            container: the container.
            address: of its pod.
            on_change: told (started, ready) when one of them changes.

        Raises:
            ContainerConfigError: a probe is of another kind.
        """
        self._probes = {name: container[name] for name in PROBES if name in container}
        for name, probe in self._probes.items():
            if "httpGet" not in probe:
                kinds = ", ".join(key for key in ("exec", "tcpSocket", "grpc") if key in probe)
                raise ContainerConfigError(f"{name}: {kinds or 'no action'}: process nodes support httpGet")
        self._ports = {port.get("name"): int(port["containerPort"]) for port in container.get("ports", [])}
        self._address = address
        self._on_change = on_change
        self.started = "startupProbe" not in self._probes
        self.ready = self.started and "readinessProbe" not in self._probes

    async def run(self) -> str:
        """Probe until startup or liveness has failed for good, so that the container has to be restarted.

        Returns:
            What failed.
        """
        async with aiohttp.ClientSession() as session:
            if "startupProbe" in self._probes:
                async for well, told in self._results(session, self._probes["startupProbe"]):
                    if not well:
                        return f"startup probe failed: {told}"
                    self._tell(started=True, ready="readinessProbe" not in self._probes)
                    break
            readiness = asyncio.create_task(self._watch_readiness(session))
            try:
                return await self._watch_life(session)
            finally:
                await end(readiness)

    def _tell(self, started: bool, ready: bool) -> None:
        if (started, ready) != (self.started, self.ready):
            self.started, self.ready = started, ready
            self._on_change(started, ready)

    async def _watch_life(self, session: aiohttp.ClientSession) -> str:
        if "livenessProbe" in self._probes:
            async for well, told in self._results(session, self._probes["livenessProbe"]):
                if not well:
                    return f"liveness probe failed: {told}"
        await asyncio.Event().wait()
        raise AssertionError("probing ends by being cancelled")

    async def _watch_readiness(self, session: aiohttp.ClientSession) -> None:
        if "readinessProbe" in self._probes:
            async for well, _ in self._results(session, self._probes["readinessProbe"]):
                self._tell(started=True, ready=well)

    async def _results(self, session: aiohttp.ClientSession, probe: Json) -> AsyncIterator[tuple[bool, str]]:
        """(well, what was told) each time that enough answers in a row agree."""
        needed = {True: int(probe.get("successThreshold", 1)), False: int(probe.get("failureThreshold", 3))}
        await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
        last, row = False, 0
        while True:
            well, told = await self._ask(session, probe)
            row = row + 1 if well == last else 1
            last = well
            if row >= needed[well]:
                yield well, told
            await asyncio.sleep(float(probe.get("periodSeconds", 10)))

    async def _ask(self, session: aiohttp.ClientSession, probe: Json) -> tuple[bool, str]:
        action = probe["httpGet"]
        scheme = str(action.get("scheme", "HTTP")).lower()
        port = self._ports.get(action["port"], action["port"])
        url = f"{scheme}://{action.get('host') or self._address}:{port}{action.get('path', '/')}"
        headers = {item["name"]: item["value"] for item in action.get("httpHeaders", [])}
        timeout = aiohttp.ClientTimeout(total=float(probe.get("timeoutSeconds", 1)))
        try:
            # As a kubelet: whoever listens at the pod's own address is the pod, so certificates are not looked at.
            async with session.get(url, headers=headers, timeout=timeout, ssl=False) as answer:
                return answer.status in _WELL, f"{url} answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return False, f"{url}: {error or type(error).__name__}"
