"""The operator loop of a local run: the same passes as in a cluster, with what a person at a terminal wants around."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sqlite3
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from videotrain.embedded.scheduler import is_ready
from videotrain.embedded.store import EmbeddedCluster
from videotrain.files import replace_file
from videotrain.local.chaos import FaultInjector
from videotrain.local.display import Display
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json
from videotrain_api.signing import KEY_BYTES
from videotrain_api.vocabulary import KIND, PORT_AGENT, Phase
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.cluster.clock import Clock
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.cluster.unreconciled import FAILED_PASSES
from videotrain_operator.manager.server import serve
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.observed import Observed
from videotrain_operator.reconcile import Outcome, RunKey, RunLoop
from videotrain_operator.telemetry import OperatorMetrics

_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often agents are asked while pods are there; the few local ones cost next to nothing."""
CONFIRM_SECONDS: Final = 1.0
"""How long the time must run evenly before it is believed."""
PATIENCE: Final = 5
"""Failed passes in a row after which the run is given up: in one process nobody else will mend what is broken."""
RESTING: Final = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED)
HOST: Final = "127.0.0.1"
"""Where the metrics are served."""


class MetricsPortError(Exception):
    """The port for the metrics cannot be used."""


class OperatorError(Exception):
    """The operator loop cannot go on."""


class Operating:
    """Runs the operator until the run rests and all of its pods are gone."""

    def __init__(
        self,
        cluster: EmbeddedCluster,
        run: VideoTrainingRun,
        faults: FaultInjector,
        display: Display,
        workdir: Path,
        metrics_port: int,
    ) -> None:
        self._cluster = cluster
        self._key = RunKey(namespace=run.metadata.namespace, name=run.metadata.name)
        self._faults = faults
        self._display = display
        self._workdir = workdir
        self._metrics_port = metrics_port
        self._seen: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue()
        self._metrics = OperatorMetrics()
        self._clock = Clock(confirm_seconds=CONFIRM_SECONDS)
        self._endpoints: Json = {}
        self._errors = 0

    async def run(self) -> Json:
        """The run as it rests: succeeded, failed or suspended, with every pod released.

        Raises:
            MetricsPortError: the port for the metrics is taken.
            OperatorError: pass after pass failed.
            sqlite3.Error: the database could not be written.
        """
        port = self._metrics_port
        async with AsyncExitStack() as stack:
            try:
                port = await stack.enter_async_context(
                    serve(HOST, port, metrics=self._metrics.text, healthy=lambda: "", ready=lambda: "")
                )
            except OSError as error:
                raise MetricsPortError(f"--metrics-port {port}: {error.strerror}; use another one, or 0") from None
            self._endpoints = {"operator": f"http://{HOST}:{port}/metrics"}
            self._display.event(f"metrics of the operator: {self._endpoints['operator']}")
            return await self._with_agents()

    async def _with_agents(self) -> Json:
        async with AgentClient(secrets.token_bytes(KEY_BYTES)) as agents, asyncio.TaskGroup() as group:
            loop = RunLoop(
                self._cluster,
                self._key,
                agents,
                clock=self._now,
                time_untrusted=lambda: self._clock.untrusted,
                rules=lambda: ClusterRules(pods="any"),  # a process of this user can do no more than its user
                on_outcome=self._seen.put_nowait,
                on_error=self._seen.put_nowait,
            )
            helpers = [group.create_task(self._operate(loop)), group.create_task(self._poll(loop))]
            helpers += [group.create_task(self._notice(loop, kind)) for kind in (KIND, "Pod", "Node", "ConfigMap")]
            helpers.append(group.create_task(self._tell_events()))
            try:
                return await self._follow()
            finally:
                for helper in helpers:
                    helper.cancel()

    def _now(self) -> datetime:
        """The time of the embedded API server, which is in this process, held against the monotonic clock."""
        asked = time.monotonic()
        self._clock.note(datetime.now(UTC), asked, time.monotonic(), resolution=0.0)
        return self._clock.now()

    async def _operate(self, loop: RunLoop) -> None:
        await loop.run()
        self._seen.put_nowait(None)

    async def _follow(self) -> Json:
        run: Json = {}
        while True:
            item = await self._seen.get()
            if item is None:
                return run  # its time to live was over, and it has been deleted
            if isinstance(item, Exception):
                self._count(item)
                continue
            self._errors = 0
            reasons = [event.reason for event in item.plan.events]
            self._metrics.note_pass(item.run, item.status, item.seconds, reasons, len(item.plan.unreadable))
            run = item.run | {"status": item.plan.status.to_wire()}
            self._display.update(run, item.observed)
            self._write_endpoints(item.observed)
            await self._faults.look(run, item.observed)
            if rests(item):
                return run

    def _count(self, error: Exception) -> None:
        """Conflicts are everyday; a broken database ends at once, everything else after some patience."""
        if isinstance(error, Conflict):
            self._metrics.note_conflict()
            return
        self._metrics.note_error(error)
        if isinstance(error, sqlite3.Error):
            raise error
        self._errors += 1
        if self._errors >= FAILED_PASSES:
            self._metrics.note_unreconciled(self._key.namespace, self._key.name)
        if self._errors >= PATIENCE:
            raise OperatorError(f"the operator failed {PATIENCE} times in a row: {error!r}") from error

    async def _poll(self, loop: RunLoop) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            loop.wake()

    async def _notice(self, loop: RunLoop, kind: str) -> None:
        ready: dict[str, bool] = {}
        async for event in self._cluster.watch(kind, self._key.namespace):
            name = event.object["metadata"]["name"]
            if kind == "Node":
                # A node's heartbeat is no news.
                if ready.get(name) == is_ready(event.object):
                    continue
                ready[name] = is_ready(event.object)
            loop.notice(event)

    async def _tell_events(self) -> None:
        async for event in self._cluster.watch("Event", self._key.namespace):
            if event.type != "DELETED":
                self._display.event(f"{event.object['reason']}: {event.object['message']}")

    def _write_endpoints(self, observed: Observed) -> None:
        agents = {
            pod.name: f"http://{pod.address}:{PORT_AGENT}" for pod in observed.pods if pod.running and pod.address
        }
        endpoints = self._endpoints | {"agents": agents}
        if endpoints != self._endpoints:
            self._endpoints = endpoints
            replace_file(self._workdir / "endpoints.json", json.dumps(endpoints, indent=2))


def rests(outcome: Outcome) -> bool:
    """Nothing is held any more, and the pass that saw it had nothing left to write: the bill is final."""
    denied = outcome.plan.status.storage_denied
    if denied is not None and denied.until is not None:
        return False  # it goes on by itself
    settled = outcome.plan.status.to_wire() == (outcome.run.get("status") or {})
    held = any(pod.finished_at is None or pod.deleting for pod in outcome.observed.pods)
    return outcome.plan.status.phase in RESTING and not held and settled and not outcome.plan.apply
