"""The driver's end of the simulated agents."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scale.tracker import PodSeen


class AgentProcess:
    """A process that answers for all pods. Use it as an async context manager."""

    def __init__(self, start_seconds: float, step_seconds: float) -> None:
        self._pace = [f"--start-seconds={start_seconds}", f"--step-seconds={step_seconds}"]
        self._process: Process | None = None
        self._sent: dict[str, str] = {}
        self._counts: asyncio.Queue[int] = asyncio.Queue()
        self._hearing: asyncio.Task[None] | None = None
        self.on_told: Callable[[str, tuple[int, bool], float], None] = lambda *_: None
        """Given a pod's uid, the order of the roster that its agent was told, and the monotonic time of that."""

    async def __aenter__(self) -> AgentProcess:
        folder = str(Path(__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": folder}
        command = [sys.executable, "-m", "scale.agents", *self._pace]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line != b"ready\n":
            raise RuntimeError("the simulated agents did not start; see above")
        self._hearing = asyncio.create_task(self._hear(self._process.stdout))
        return self

    async def _hear(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            said = json.loads(line)
            if "questions" in said:
                self._counts.put_nowait(int(said["questions"]))
            else:
                told = said["told"]
                self.on_told(told["uid"], (told["order"][0], told["order"][1]), told["at"])

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        if self._hearing is not None:
            await self._hearing  # ends with the process' output

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def use_key(self, master_key: bytes) -> None:
        """The operator's master key, before the first pod."""
        self._send({"masterKey": master_key.hex()})

    def pod(self, pod: PodSeen) -> None:
        """A pod came, changed or went."""
        if pod.address is None:
            return
        if pod.gone_at is not None:
            self._sent.pop(pod.uid, None)
            self._send({"gone": pod.address, "uid": pod.uid})
        elif self._sent.get(pod.uid) != pod.address:
            self._sent[pod.uid] = pod.address
            self._send({"pod": {"name": pod.name, "uid": pod.uid, "address": pod.address, "run": pod.run_uid}})

    async def finish(self) -> None:
        """All workers complete their stage."""
        self._send({"finish": True})
        await self._drain()

    async def questions(self) -> int:
        """How often agents were asked so far."""
        self._send({"count": True})
        await self._drain()
        return await self._counts.get()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _drain(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.drain()
