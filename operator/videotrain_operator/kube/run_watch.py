"""kopf watches the runs, and nothing else: every event goes into the cache and wakes.

kopf brings what is hard to get right about watching a resource that people edit: reconnects, silence, credentials that
expire, scoping. Handlers with state of its own (annotations, finalizers, timers) are not used, so it never writes.

It has a thread and an event loop of its own: when it ends, it cancels every task of its loop, whosever they are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from videotrain_api.vocabulary import API_VERSION, GROUP, PLURAL
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.trim import trim

WATCH_SECONDS: Final = 300
AGAIN_SECONDS: Final = 1.0
"""How long to wait before kopf, which gave up, is started anew."""
Reload = Callable[[], Any]
"""Coroutine function that gives the present Configuration; credentials may have been renewed."""
_log = logging.getLogger(__name__)


class _NoDiff(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Keeps no last-handled state: kopf would copy every object twice per event to find differences nobody asks for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("there is no handler that changes a run")


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiff()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # the kind is installed with the operator; listing CRDs needs cluster rights
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 10
    settings.watching.connect_timeout = 10.0
    settings.watching.reconnect_backoff = 1.0
    settings.networking.request_timeout = 30.0
    settings.networking.error_backoffs = (0.5, 1, 2)  # it sleeps through recoveries; `follow` is what does not give up
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 2.0
    settings.process.ultimate_exiting_timeout = 10.0
    return settings


def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same server and credentials for kopf's own client."""
    bearer = configuration.api_key.get("BearerToken", "")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        token=bearer.split()[-1] if bearer else None,  # `Bearer` in a kubeconfig, `bearer` in a pod
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )


class _Ready(asyncio.Event):
    """Tells somebody when it is set."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self._then = then

    def set(self) -> None:
        super().set()
        self._then()


class Runs:
    """Follows the runs into a Store."""

    def __init__(self, reload: Reload, store: Store, on_event: Callable[[WatchEvent], None]) -> None:
        """Prepare.

        Args:
            reload: gives the present configuration of the client.
            store: cache of the runs.
            on_event: told of every change.
        """
        self._store = store
        self._on_event = on_event
        self._stop = threading.Event()
        self._end: Callable[[], object] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._gone: set[str] = set()
        self._registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=self._registry)  # type: ignore[untyped-decorator]
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return connection(await reload())

        version = API_VERSION.removeprefix(f"{GROUP}/")

        @kopf.on.event(GROUP, version, PLURAL, registry=self._registry)  # type: ignore[untyped-decorator]
        async def seen(event: Any, **_: Any) -> None:
            self._loop.call_soon_threadsafe(self.take, event["type"] or "MODIFIED", dict(event["object"]))

    def take(self, type_: str, body: dict[str, Any]) -> None:
        """A run as it is now, from kopf or from a list."""
        run = trim(body)
        if type_ == "DELETED":
            self._gone.add(run["metadata"]["uid"])
            self._store.remove(run)
            self._on_event(WatchEvent("DELETED", run))
        elif run["metadata"]["uid"] not in self._gone and self._store.put(run):
            self._on_event(WatchEvent("MODIFIED", run))

    def begin_list(self) -> None:
        """A list is about to be read beside the watch: what is deleted from now on stays so, whatever it holds."""
        self._gone.clear()

    def keep_only(self, keys: Iterable[Key], version: int, namespace: str) -> None:
        """Forget runs that a list of that resourceVersion does not hold."""
        for body in self._store.keep_only(keys, version, namespace):
            self._on_event(WatchEvent("DELETED", body))

    async def follow(self, namespaces: tuple[str, ...], on_connected: Callable[[], None]) -> None:
        """Follow until `stop`.

        kopf ends when refusals go on for a while, as they do while an API server or what stands before it starts anew.
        That is no reason to end: runs go on, and so does everything else here.

        Args:
            namespaces: where; everywhere if empty.
            on_connected: called whenever kopf has connected.

        Raises:
            Exception: it could not connect even once.
        """
        logging.getLogger("kopf").setLevel(logging.WARNING)
        # It warns at each start that signals are not its business.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        connected = threading.Event()

        def note() -> None:
            connected.set()
            self._loop.call_soon_threadsafe(on_connected)

        while not self._stop.is_set():
            try:
                await asyncio.to_thread(lambda: asyncio.run(self._kopf(namespaces, note)))
            except Exception as error:
                if not connected.is_set():
                    raise
                _log.warning("runs are not watched, next try in %s s: %s", AGAIN_SECONDS, error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _kopf(self, namespaces: tuple[str, ...], then: Callable[[], object]) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(stop.set)
        if self._stop.is_set():
            return
        await kopf.operator(
            registry=self._registry,
            settings=_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=_Ready(then),
        )

    def stop(self) -> None:
        """End `follow`."""
        self._stop.set()
        with suppress(RuntimeError):  # that loop has ended already
            self._end()
