"""The operator process: everything wired together, from start to release."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Final

from videotrain_api import metrics as catalogue
from videotrain_api.reasons import Reason
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.schema import Json
from videotrain_api.vocabulary import BUDGET_KIND, FIELD_MANAGER, KIND
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.cache import Key, Store, key_of
from videotrain_operator.kube.cached_cluster import CACHED, KubeCluster
from videotrain_operator.kube.client import ApiUnavailable, KubeClient, connect, load_configuration, service_account
from videotrain_operator.kube.informer import Informer
from videotrain_operator.kube.run_watch import Runs
from videotrain_operator.manager.bill_copies import BillCopies
from videotrain_operator.manager.bills import BillKeeper
from videotrain_operator.manager.budget_watch import BudgetWatch
from videotrain_operator.manager.controller import Controller
from videotrain_operator.manager.defaults_watch import DefaultsWatch
from videotrain_operator.manager.election import Election
from videotrain_operator.manager.election_thread import ElectionThread, RelayedClock
from videotrain_operator.manager.kopf_thread import KopfThread
from videotrain_operator.manager.master_key import read_master_key
from videotrain_operator.manager.reserved import reserved_samples
from videotrain_operator.manager.scrapers import Scrapers
from videotrain_operator.manager.server import serve
from videotrain_operator.manager.settings import Settings
from videotrain_operator.manager.team_budgets import BudgetKeeper
from videotrain_operator.manager.traces import Traces, traces
from videotrain_operator.telemetry import OperatorMetrics, Sample
from videotrain_operator.webhook.server import Webhook

OWNED: Final = f"app.kubernetes.io/managed-by={FIELD_MANAGER}"
SILENT_SECONDS: Final = 180.0
"""A replica that heard nothing on one of its watches for so long is not ready.

Longer than it takes to notice that a watch is dead (client.SILENCE_SECONDS) and to get a bookmark on the next, which
comes within a minute: a connection that died is no reason as long as the API server lives.
"""
STUCK_SECONDS: Final = 60.0
"""An event loop that did not turn for so long is not healthy."""
HUNG_SECONDS: Final = 30.0
"""A replica whose event loop did not turn for so long takes no Lease and lets its own run out."""
TICK_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 2.0
"""After so long runs are listed again if that failed."""
_log = logging.getLogger(__name__)


def own_namespace() -> str:
    """The pod's namespace; `default` outside of a pod."""
    file = service_account() / "namespace"
    return file.read_text().strip() if file.exists() else "default"


class Operator:
    """One replica of the operator: its caches, Lease election, metrics, webhook and the loops of the runs."""

    def __init__(
        self,
        settings: Settings,
        client: KubeClient,
        agents: AgentClient,
        metrics: OperatorMetrics,
        told: Traces | None = None,
    ) -> None:
        self._settings, self._client, self._metrics, self._agents = settings, client, metrics, agents
        self._namespace = settings.lease_namespace or own_namespace()
        self._prices = settings.cluster_rules().prices
        self._stores = {kind: Store() for kind in CACHED}
        self._ticked_at = time.monotonic()
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._watching = asyncio.Event()
        host = os.environ.get("HOSTNAME") or socket.gethostname()
        identity = f"{host}_{settings.instance or uuid.uuid4().hex[:8]}"
        self._election = ElectionThread(self._connect_apart, lambda client: self._elect(client, identity))
        fence = self._election.fence if settings.leader_elect else lambda: None
        self._cluster = cluster = KubeCluster(client, self._stores, fence, host)
        fenced, place = client.fenced(fence), settings.bill_place()
        copies = BillCopies(fenced, self._namespace, place) if place is not None else None
        bills = BillKeeper(
            fenced, self._namespace, client.clock.now, lambda bill: self._budgets.note_bill(bill), copies
        )
        self._budgets = BudgetKeeper(
            cluster,
            client.clock.now,
            self._stores[BUDGET_KIND].all,
            self._stores[KIND].all,
            self._holds_nodes,
            bills.kept,
            namespaces=settings.namespaces,
            time_untrusted=lambda: client.clock.untrusted,
            on_change=lambda: self._controller.wake_all(),
            known=lambda: self._budget_watch.synced.is_set(),
            on_error=metrics.note_error,
        )
        # Before what wakes it: each of the following takes its `notice`.
        self._controller = Controller(
            cluster,
            self._stores,
            agents,
            metrics,
            settings,
            lambda: self._informers[0].heard_at,
            client.clock,
            self._pods_heard_at,
            lambda: client.permits.crowded,
            bills,
            lambda: self._informers[0].returned_at,
            self._budgets,
            told,
        )
        self._informers = list(self._make_informers())
        self._budget_watch = BudgetWatch(
            client,
            self._stores[BUDGET_KIND],
            self._controller.notice,
            on_read=self._controller.wake_all,
            on_refused=metrics.note_error,
        )
        self._runs = Runs(self._stores[KIND], self._controller.notice)
        self._kopf = KopfThread(self._runs, lambda: load_configuration(settings.kubeconfig or None))
        self._webhook = self._make_webhook() if settings.webhook_port else None
        self._defaults = self._make_defaults() if settings.run_defaults else None
        metrics.add_source(self._samples)
        metrics.add_source(self._budgets.samples)
        metrics.add_source(self._reserved)
        if copies is not None:
            metrics.add_source(copies.samples)

    def _connect_apart(self) -> AbstractAsyncContextManager[KubeClient]:
        """A client of the election's own loop; what it asks is counted in the process's."""

        def told(verb: str, kind: str, status: int) -> None:
            self._loop.call_soon_threadsafe(self._metrics.note_request, verb, kind, status)

        return connect(self._settings.kubeconfig or None, on_request=told)

    def _elect(self, client: KubeClient, identity: str) -> Election:
        client.clock = RelayedClock(self._client.clock, self._loop)  # often nobody else asks the server anything
        return Election(
            client,
            namespace=self._namespace,
            name=self._settings.lease_name,
            identity=identity,
            seconds=self._settings.lease_seconds,
            alive=lambda: time.monotonic() - self._ticked_at < HUNG_SECONDS,
        )

    def _make_informers(self) -> Iterable[Informer]:
        """Of nodes, which is the first, and of what runs own: everywhere, or in each namespace that is served."""
        notice = self._controller.notice
        yield Informer(self._client, "Node", self._stores["Node"], notice)
        kinds = ("Pod", "ConfigMap", *(("NetworkPolicy",) if self._settings.network_policy else ()))
        for kind in kinds:
            for namespace in self._settings.namespaces or ("",):
                yield Informer(self._client, kind, self._stores[kind], notice, namespace=namespace, labels=OWNED)

    def _holds_nodes(self, uid: str) -> bool:
        pods = (pod for pod in self._stores["Pod"].of_run(uid) if pod["spec"].get("nodeName"))
        return any((pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") for pod in pods)

    def _pods_heard_at(self, namespace: str) -> float:
        return max(i.heard_at for i in self._informers if i.kind == "Pod" and i.namespace in ("", namespace))

    def _make_webhook(self) -> Webhook:
        settings = self._settings
        return Webhook(
            self._client,
            address=settings.listen_address,
            port=settings.webhook_port,
            service=settings.webhook_service,
            namespace=own_namespace(),
            secret_namespace=self._namespace,
            secret=settings.webhook_secret,
            configuration=settings.webhook_configuration,
            client_ca=settings.webhook_client_ca,
            client_names=frozenset(settings.webhook_client_names),
            pod_policy=settings.cluster_rules().pods,
        )

    def _make_defaults(self) -> DefaultsWatch:
        def changed(defaults: RunDefaults) -> None:
            if self._webhook is not None:
                self._webhook.judges.take_defaults(defaults)
            self._controller.take_defaults(defaults)

        async def unreadable(config_map: Json, problem: str) -> None:
            if self._leading():
                await self._cluster.emit_event(config_map, "Warning", Reason.DEFAULTS_UNREADABLE, problem)

        return DefaultsWatch(self._client, self._namespace, self._settings.run_defaults, changed, unreadable)

    def _leading(self) -> bool:
        return self._election.leading or not self._settings.leader_elect

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT.

        Raises:
            ApiError: the API server refuses what the operator cannot do without.
            OSError: a port cannot be used.
        """
        async with AsyncExitStack() as stack:
            self._loop = asyncio.get_running_loop()
            if self._settings.leader_elect:
                await stack.enter_async_context(self._election)
            port = await stack.enter_async_context(
                serve(
                    self._settings.listen_address,
                    self._settings.http_port,
                    metrics=self._metrics.text,
                    healthy=self._liveness_problem,
                    ready=self._readiness_problem,
                    scrapers=Scrapers(self._client.apart()) if self._settings.metrics_authorization else None,
                )
            )
            _log.info("serving /metrics, /healthz and /readyz on port %d", port)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.stop)
            stopping = asyncio.create_task(self._stopping.wait())
            working = asyncio.create_task(self._work())
            await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
            self._kopf.stop()  # a thread: cancelling the task that waits for it would not end it
            stopping.cancel()
            working.cancel()
            results = await asyncio.gather(working, return_exceptions=True)
            # Last, when nothing here writes any more: the next leader begins at once.
            if self._settings.leader_elect:
                await self._election.release()
            for error in results:
                if isinstance(error, Exception):
                    raise error

    def stop(self) -> None:
        """Let `run` return soon; safe to call more than once."""
        self._stopping.set()

    async def _work(self) -> None:
        # Before any watch: one of a kind that is not served yet would count as a refusal.
        await self._wait_for_the_kind()
        self._agents.master_key = await self._read_master_key()
        if self._defaults is not None:
            # Before any run is looked at, and any review: no pod is made, and no run let in, without them.
            await self._defaults.first()
        async with asyncio.TaskGroup() as group:
            if self._defaults is not None:
                group.create_task(self._defaults.run())
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self._budget_watch.run())
            group.create_task(self._kopf.follow(self._settings.namespaces, self._watching.set))
            if self._webhook is not None:
                group.create_task(self._webhook.run())
            # The list comes after the watch has begun, so that no change falls between the two.
            await self._watching.wait()
            self._watching.clear()
            await self._resync()
            for informer in self._informers:
                await informer.synced.wait()
            await self._budget_watch.answered.wait()
            # What was loaded so far stays: collections need not look at it again.
            gc.collect()
            gc.freeze()
            self._ready.set()
            # Before anybody may lead: one that does not tick counts as hung.
            self._ticked_at = time.monotonic()
            group.create_task(self._tick())
            # Leading comes last: a pass over a cache that is not full would make pods a second time.
            group.create_task(self._resync_always())
            group.create_task(self._lead_whenever_elected())

    async def _wait_for_the_kind(self) -> None:
        """Until the CustomResourceDefinition is installed and the API server answers."""
        told = False
        while True:
            try:
                await self._client.list_page(KIND, (self._settings.namespaces or ("",))[0], limit="1")
            except (NotFound, ApiUnavailable) as error:
                if not told:
                    _log.warning("waiting for the API server to serve %s: %s", KIND, error)
                    told = True
                await asyncio.sleep(1.0)
            else:
                return

    async def _lead(self) -> None:
        # Again in each term: a replica that kept the key of before would make every run's pods anew, and so would the
        # next leader.
        self._agents.master_key = await self._read_master_key()
        await self._controller.lead()

    async def _read_master_key(self) -> bytes:
        return await read_master_key(self._client, self._namespace, self._settings.key_secret)

    async def _lead_whenever_elected(self) -> None:
        if not self._settings.leader_elect:
            await self._controller.lead()
        while True:
            await self._election.acquire()
            leading = asyncio.create_task(self._lead())
            keeping = asyncio.create_task(self._election.keep())
            try:
                await asyncio.wait({leading, keeping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leading.cancel()
                keeping.cancel()
                results = await asyncio.gather(leading, keeping, return_exceptions=True)
            for error in results:
                if isinstance(error, Exception):
                    raise error

    async def _resync_always(self) -> None:
        """Now and then, and when the watch begins anew: what went meanwhile is in no list, so no event tells of it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.resync_seconds):
                    await self._watching.wait()
            self._watching.clear()
            try:
                await self._resync()
            except (ApiUnavailable, NotFound) as error:  # a server that starts does not know the kind at once
                _log.warning("runs could not be read anew, next try in %s s: %s", AGAIN_SECONDS, error)
                await asyncio.sleep(AGAIN_SECONDS)
                self._watching.set()

    async def _resync(self) -> None:
        """Read every run anew: a watch that lost an event is made good."""
        self._runs.begin_list()
        for namespace in self._settings.namespaces or ("",):
            keys: list[Key] = []
            version = "0"
            async for items, listed in self._client.pages(KIND, namespace):
                for item in items:
                    self._runs.take("MODIFIED", item)
                    keys.append(key_of(item))
                version = listed
            self._runs.keep_only(keys, int(version), namespace)

    async def _tick(self) -> None:
        while True:
            self._ticked_at = time.monotonic()
            self._controller.look_at_nodes()
            await asyncio.sleep(TICK_SECONDS)

    def _liveness_problem(self) -> str:
        still = time.monotonic() - self._ticked_at
        return f"the event loop stood still for {still:.0f} s" if self._ready.is_set() and still > STUCK_SECONDS else ""

    def _readiness_problem(self) -> str:
        if not self._ready.is_set():
            problem = self._defaults.problem if self._defaults is not None else ""
            return f"the defaults for runs cannot be read: {problem}" if problem else "caches are not filled yet"
        if self._webhook is not None and not self._webhook.ready:
            return "the webhook has no certificate yet"
        silent = [
            f"{kind} in {namespace}" if namespace else kind
            for kind, namespace, seconds in self._silences()
            if seconds > SILENT_SECONDS
        ]
        if silent:
            return f"nothing was heard of {', '.join(silent)} from the API server for {SILENT_SECONDS:g} s"
        return ""

    def _silences(self) -> Iterable[tuple[str, str, float]]:
        """Of each watch its kind, its namespace if it has one, and how long ago the API server gave a sign on it."""
        now = time.monotonic()
        for informer in self._informers:
            yield informer.kind, informer.namespace, now - informer.heard_at
        if not self._budget_watch.refusal:
            yield BUDGET_KIND, "", now - self._budget_watch.heard_at
        yield KIND, "", now - self._runs.heard_at

    def _reserved(self) -> Iterable[Sample]:
        """Told by the leader alone: sums over replicas would count everything twice."""
        if not self._leading():
            return ()
        nodes, pods = (self._stores[kind].all() for kind in ("Node", "Pod"))
        return reserved_samples(self._prices, nodes, pods, self._client.clock.now())

    def _samples(self) -> Iterable[Sample]:
        yield catalogue.LEADER, (), float(self._leading())
        yield catalogue.PASSES_WAITING, (), self._controller.passes_waiting
        yield catalogue.TIME_UNTRUSTED, (), float(bool(self._client.clock.untrusted))
        restarts: dict[str, int] = {}
        for informer in (*self._informers, self._budget_watch):
            restarts[informer.kind] = restarts.get(informer.kind, 0) + informer.restarts
        for kind, count in restarts.items():
            yield catalogue.WATCH_RESTARTS, (kind,), count
        if self._ready.is_set():
            longest: dict[str, float] = {}
            for kind, _, seconds in self._silences():
                longest[kind] = max(seconds, longest.get(kind, 0.0))
            for kind, seconds in longest.items():
                yield catalogue.WATCH_SILENT_SECONDS, (kind,), seconds
        for what, refusals in sorted(self._agents.refused.items()):
            yield catalogue.AGENT_ANSWERS_REFUSED, (what,), refusals
        if self._defaults is not None:
            yield catalogue.RUN_DEFAULTS_UNREADABLE, (), float(bool(self._defaults.problem))
            yield catalogue.RUN_DEFAULTS_REFUSED, (), self._defaults.unreadable
        if self._webhook is not None:
            for outcome, count in sorted(self._webhook.reviews.items()):
                yield catalogue.WEBHOOK_REVIEWS, (outcome,), count
            for reason, count in sorted(self._webhook.refused().items()):
                yield catalogue.WEBHOOK_REFUSED, (reason,), count
            yield catalogue.WEBHOOK_JUDGES_ENDED, (), self._webhook.judges.died


async def run_operator(settings: Settings) -> None:
    """Run one replica until it is told to stop.

    Raises:
        ApiError: the API server refuses what the operator cannot do without.
        OSError: a port cannot be used.
        kubernetes.aio.config.ConfigException: there is no usable configuration.
    """
    metrics, told = OperatorMetrics(), traces(settings.otlp_endpoint)
    async with connect(settings.kubeconfig or None, on_request=metrics.note_request) as client, AgentClient() as agents:
        try:
            await Operator(settings, client, agents, metrics, told).run()
        finally:
            await asyncio.to_thread(told.close)
