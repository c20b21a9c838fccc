"""Replicas of the operator, as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from scale import usage
from scale.plane import OPERATOR_NAMESPACE
from videotrain_api import metrics

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0


def parse_requests(text: str) -> Counter[str]:
    """Requests by verb and kind, from the operator's metrics."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == metrics.API_REQUESTS.name:
                found[f"{sample.labels['verb']} {sample.labels['kind']}"] += int(sample.value)
    return found


class Replica:
    """One operator process; may be ended and started again."""

    def __init__(self, number: int, kubeconfig: Path, log: Path) -> None:
        self.number = number
        self.port = 8080 + number
        self._kubeconfig, self._log = kubeconfig, log
        self._process: subprocess.Popen[bytes] | None = None
        self._cpu_before = 0.0
        self.started = 0.0
        self.peak_mib = 0.0
        """Highest peak of the resident set over all its processes."""

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start a process."""
        command = [
            str(Path(sys.executable).with_name("videotrain-operator")),
            "run",
            f"--kubeconfig={self._kubeconfig}",
        ]
        command += [f"--lease-namespace={OPERATOR_NAMESPACE}", f"--http-port={self.port}"]
        # As in the chart: a container that comes again in its pod follows a dead one, and each run has a policy.
        command += [f"--instance={self.number}", "--network-policy={}"]
        # A pod's environment: nothing that belongs to whoever runs the benchmark but settings of the operator.
        kept = ("PATH", "LANG", "PYTHONWARNINGS")
        names = [name for name in os.environ if name in kept or name.startswith("VIDEOTRAIN_OPERATOR_")]
        environment = {name: os.environ[name] for name in names} | {"HOSTNAME": f"replica-{self.number}"}
        self.started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    async def ready(self, timeout: float = START_SECONDS) -> float:
        """Wait until /readyz says so; the monotonic time.

        Raises:
            RuntimeError: the process ended, or is not ready in time; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout
        async with aiohttp.ClientSession(trust_env=False) as session:
            while time.monotonic() < deadline and self.running:
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}/readyz") as answer:
                        if answer.status == 200:
                            return time.monotonic()
                except aiohttp.ClientError:
                    pass  # it does not listen yet
                await asyncio.sleep(0.05)
        state = "is not ready" if self.running else "ended by itself"
        raise RuntimeError(f"operator replica {self.number} {state}; the end of {self._log}:\n{self.tail()}")

    async def end(self, number: signal.Signals) -> float:
        """Send a signal and wait until the process is gone; seconds that took."""
        assert self._process is not None
        began = time.monotonic()
        self._note()
        self._process.send_signal(number)
        await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        return time.monotonic() - began

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self.running:
            assert self._process is not None
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Of all its processes so far. What a dying process used after the signal is missing."""
        return self._cpu_before + (usage.cpu_seconds(self.pid) if self.running else 0.0)

    def memory(self) -> dict[str, float]:
        """Resident set now and the highest so far, MiB."""
        now = usage.memory_mib(self.pid)
        self.peak_mib = max(self.peak_mib, now["peakRssMiB"])
        return {"rssMiB": now["rssMiB"], "peakRssMiB": self.peak_mib}

    async def requests(self) -> Counter[str]:
        """API requests of the present process by verb and kind."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        async with aiohttp.ClientSession(trust_env=False) as session, session.get(url) as answer:
            return parse_requests(await answer.text())

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _note(self) -> None:
        if self.running:
            self._cpu_before += usage.cpu_seconds(self.pid)
            self.memory()
