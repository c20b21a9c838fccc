"""kopf watches the runs, and nothing else: every event goes into the cache and wakes.

kopf brings what is hard to get right about watching a resource that people edit: reconnects, silence, credentials that
expire, scoping. Handlers with state of its own (annotations, finalizers, timers) are not used, so it never writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from videotrain_api.vocabulary import API_VERSION, GROUP, PLURAL
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.trim import trim

WATCH_SECONDS: Final = 300
Reload = Callable[[], Any]
"""Coroutine function that gives the present Configuration; credentials may have been renewed."""


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
        self._stop = asyncio.Event()
        self._registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=self._registry)  # type: ignore[untyped-decorator]
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return connection(await reload())

        version = API_VERSION.removeprefix(f"{GROUP}/")

        @kopf.on.event(GROUP, version, PLURAL, registry=self._registry)  # type: ignore[untyped-decorator]
        def seen(event: Any, **_: Any) -> None:
            self.take(event["type"] or "MODIFIED", dict(event["object"]))

    def take(self, type_: str, body: dict[str, Any]) -> None:
        """A run as it is now, from kopf or from a list."""
        run = trim(body)
        if type_ == "DELETED":
            self._store.remove(run)
            self._on_event(WatchEvent("DELETED", run))
        elif self._store.put(run):
            self._on_event(WatchEvent("MODIFIED", run))

    def keep_only(self, keys: Iterable[Key], version: int, namespace: str) -> None:
        """Forget runs that a list of that resourceVersion does not hold."""
        for body in self._store.keep_only(keys, version, namespace):
            self._on_event(WatchEvent("DELETED", body))

    async def follow(self, namespaces: tuple[str, ...], ready: asyncio.Event) -> None:
        """Follow until `stop`.

        Args:
            namespaces: where; everywhere if empty.
            ready: set when kopf has connected.
        """
        logging.getLogger("kopf").setLevel(logging.WARNING)
        await kopf.operator(
            registry=self._registry,
            settings=_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=self._stop,
            ready_flag=ready,
        )

    def stop(self) -> None:
        """End `follow`."""
        self._stop.set()
