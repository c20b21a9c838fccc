"""Everything that kopf calls, in the order in which it does: startup, login, event, cleanup.

kopf watches the runs and nothing else. It brings what is hard to get right about watching a resource that people edit:
reconnects, expired versions, silence, credentials that run out, scoping. There is no handler of changes, timers or
daemons on purpose: those keep their state in annotations and finalizers, and kopf never writes here. The handler of
events puts what it sees into the cache, whose loop per run (`reconcile.RunLoop`) does the rest.

Admission (`kopf.on.validate`) and probes (`kopf.on.probe`) are no handlers either. kopf's servers go whenever kopf
does, so an outage of the API server would take the webhook away and have the kubelet kill the process; and its
admission cuts bodies off at 1 MiB and cannot name the fields that it refuses. `webhook/server.py` and
`manager/server.py` serve them.

docs/decisions/0560-operator-process.md has the reasons.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import kopf
from kopf._cogs.clients import api as kopf_api
from kubernetes.aio.client import Configuration

from videotrain_api.vocabulary import API_VERSION, GROUP, PLURAL
from videotrain_operator.kube.json_text import read_json
from videotrain_operator.kube.run_watch import Runs

# kopf reads with Python's own reader, which fails at a thousand levels, and with it the watch of everybody's runs. Its
# settings name no other.
kopf_api.json = SimpleNamespace(loads=read_json)  # type: ignore[assignment, attr-defined]
VERSION: Final = API_VERSION.removeprefix(f"{GROUP}/")
registry: Final = kopf.OperatorRegistry()
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Memo:
    """What handlers know of the process: kopf hands it to each of them, to that of events a copy for each run."""

    loop: AbstractEventLoop
    """The process's event loop; kopf has one of its own, in another thread."""
    runs: Runs
    """To be called in that loop."""
    watch_seconds: int
    """The server ends a watch after so long, and kopf takes it up again."""
    load_configuration: Callable[[], Awaitable[Configuration]]
    """The client's configuration, read anew: a token may have been renewed."""
    on_connected: Callable[[], object]
    """Told, in that loop, that kopf begins to watch."""
    connection: kopf.ConnectionInfo | None = None
    session: kopf.AiohttpSession | None = None


class NoDiff(kopf.DiffBaseStorage):
    """Keeps no last-handled state: kopf would copy every object twice per event to find differences nobody asks for."""

    def build(self, **_: Any) -> Any:
        """Nothing is taken from a run, so kopf compares nothing."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored on a run by an earlier process."""
        return None

    def store(self, **_: Any) -> None:
        """Fail: kopf stores only for handlers that change a run, and there is none."""
        raise AssertionError("there is no handler that changes a run")


class _Response(aiohttp.ClientResponse):
    """An answer whose JSON may be of any depth; see `kube.json_text`."""

    async def json(self, **_: Any) -> Any:
        return read_json(await self.read())


@kopf.on.startup(registry=registry)
async def configure(settings: kopf.OperatorSettings, memo: Memo, **_: Any) -> None:
    """No peering, no state on objects, no Events of kopf's own; watches that cannot hang."""
    settings.peering.standalone = True  # replicas are told apart by our Lease, which has a fence
    settings.persistence.diffbase_storage = NoDiff()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # the kind is installed with the operator; listing CRDs needs cluster rights
    settings.watching.server_timeout = memo.watch_seconds
    settings.watching.client_timeout = memo.watch_seconds + 10
    settings.watching.connect_timeout = 10.0
    settings.watching.reconnect_backoff = 1.0
    settings.networking.request_timeout = 30.0
    settings.networking.error_backoffs = (0.5, 1, 2)  # it sleeps through recoveries; KopfThread is what never gives up
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 2.0
    settings.process.ultimate_exiting_timeout = 10.0
    # Last: whoever is told lists the runs beside the watch, which begins right after this.
    memo.loop.call_soon_threadsafe(memo.on_connected)


@kopf.on.login(registry=registry)
async def login(memo: Memo, **_: Any) -> kopf.AiohttpSession:
    """The same server and credentials as our client has, in a session that notes every answer."""
    connection = connection_of(await memo.load_configuration())
    # Credentials that were refused come back as the same object: kopf then knows that there are no others, and ends
    # instead of asking for ever.
    if memo.session is None or connection != memo.connection:
        memo.connection, memo.session = connection, noting_session(connection, memo)
    return memo.session


@kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
async def run_seen(event: kopf.RawEvent, memo: Memo, **_: Any) -> None:
    """A run was listed (no type), added, modified or deleted."""
    memo.loop.call_soon_threadsafe(memo.runs.take, event["type"] or "MODIFIED", dict(event["object"]))


@kopf.on.cleanup(registry=registry)
async def say_that_nobody_watches(**_: Any) -> None:
    """Kopf ends: it was told to, or the API server refused for longer than it is patient."""
    _log.info("kopf has ended: runs are not watched until it begins anew")


def connection_of(configuration: Configuration) -> kopf.ConnectionInfo:
    """The server and the credentials of the Kubernetes client, in kopf's words."""
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


def noting_session(connection: kopf.ConnectionInfo, memo: Memo) -> kopf.AiohttpSession:
    """What kopf would make of the connection itself, and it tells the runs of every answer about them.

    kopf keeps bookmarks to itself. So its watches are short, and each that is taken up again is a sign of the server.
    """

    async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        if end.response.ok and end.url.path.endswith(PLURAL):
            memo.loop.call_soon_threadsafe(memo.runs.heard)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=connection.as_ssl_context()),
        headers=connection.as_http_headers(),
        proxy=connection.proxy_url,
        trace_configs=[trace],
        response_class=_Response,
    )
    return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)
