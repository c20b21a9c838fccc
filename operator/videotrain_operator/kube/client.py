"""A thin JSON client of the API server over `kubernetes.aio`.

The generated client has a class per kind and validates what it reads; an operator that looks at thousands of pods wants
plain JSON. Configuration, TLS and credentials are the library's, the verbs are ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, list_kube_config_contexts, load_kube_config
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from videotrain_api.schema import Json
from videotrain_api.vocabulary import ENV_POD_ROOT
from videotrain_operator.cluster.clock import Clock
from videotrain_operator.cluster.interface import Conflict, NotFound, WatchEvent
from videotrain_operator.kube.json_text import read_json, write_json
from videotrain_operator.kube.kinds import KINDS
from videotrain_operator.kube.pace import FEWEST, Pace
from videotrain_operator.kube.turns import Turns

REQUEST_SECONDS: Final = 30.0
"""A request that takes longer has failed; a hung write must not hold its run for ever."""
WATCH_SECONDS: Final = 90
"""The server ends a watch after so long, and it is taken up again where it ended."""
SILENCE_SECONDS: Final = WATCH_SECONDS + 20.0
"""A watch from which nothing came for so long is dead, whatever TCP says."""
PAGE: Final = 500
"""Objects of one page of a list."""
RETRIES: Final = 4
LONGEST_RETRY_SECONDS: Final = 5.0
"""Longest that a server may have one request wait by `Retry-After`: it holds a permit meanwhile."""
_SERVICE_ACCOUNT: Final = "var/run/secrets/kubernetes.io/serviceaccount"
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
LONGEST_LINE: Final = 64 * 2**20
"""Bytes of one watch event; an object with its managed fields may have megabytes."""
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
_log = logging.getLogger(__name__)
OnRequest = Callable[[str, str, int], None]
"""Told verb, kind and HTTP status (0: no answer) of every request."""


class ApiError(Exception):
    """The API server refused a request, or did not answer it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 if there was no answer."""
        self.reason = reason
        """Reason of the Status object, such as Forbidden, Invalid, AlreadyExists, Expired."""


ConfigurationError = ConfigException
"""There is no usable configuration; the library's own."""


class ApiUnavailable(ApiError):
    """No answer, or one that says to come back later: nothing is known about the cluster now."""

    def __init__(self, status: int, reason: str, message: str, retry_seconds: float = 0.0) -> None:
        super().__init__(status, reason, message)
        self.retry_seconds = retry_seconds
        """When to come back, if the server says so, LONGEST_RETRY_SECONDS at most."""


def service_account() -> Path:
    """The folder of the pod's service account: its token, authority and namespace, if this runs in a pod."""
    return Path(os.environ.get(ENV_POD_ROOT, "/")) / _SERVICE_ACCOUNT


async def load_configuration(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """The library's configuration, read anew; see `connect`."""
    configuration = Configuration()
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        root = service_account()
        InClusterConfigLoader(str(root / "token"), str(root / "ca.crt")).load_and_set(configuration)
    else:
        await load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    return configuration


def own_namespace(kubeconfig: str | None = None, context: str | None = None) -> str:
    """The namespace that a kubeconfig's context names, or that of the pod that this runs in; see `connect`.

    Raises:
        kubernetes.aio.config.ConfigException: there is no usable configuration.
    """
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        return (service_account() / "namespace").read_text(encoding="utf-8").strip()
    contexts, current = list_kube_config_contexts(kubeconfig)
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str(chosen["context"].get("namespace", "default"))


@asynccontextmanager
async def connect(
    kubeconfig: str | None = None, context: str | None = None, on_request: OnRequest | None = None
) -> AsyncIterator[KubeClient]:
    """A client of the cluster that the pod runs in, or of the one that a kubeconfig names.

    Args:
        kubeconfig: file; the pod's service account if None and in a pod without KUBECONFIG, else the usual files.
        context: context in it; its current one if None.
        on_request: told of every request.

    Raises:
        kubernetes.aio.config.ConfigException: there is no usable configuration.
    """
    api = ApiClient(await load_configuration(kubeconfig, context))
    try:
        yield KubeClient(api, on_request)
    finally:
        await api.close()


class KubeClient:
    """Verbs on objects as JSON data. Every method may raise ApiError; NotFound and Conflict as named."""

    def __init__(self, api: ApiClient, on_request: OnRequest | None = None, clock: Clock | None = None) -> None:
        self._api = api
        self.clock = clock or Clock()
        """The server's time, from every answer of its."""
        self._on_request = on_request
        self.permits = Turns(FEWEST)
        self._pace = Pace(self.permits)
        self._fence: Callable[[], None] = lambda: None

    def fenced(self, fence: Callable[[], None]) -> KubeClient:
        """The same client, behind the same others, whose writes ask a fence at the moment of each attempt.

        Args:
            fence: raises if this process must not write. A write may have waited long since it was asked for.
        """
        client = KubeClient(self._api, self._on_request, self.clock)
        client.permits, client._pace, client._fence = self.permits, self._pace, fence
        return client

    def apart(self) -> KubeClient:
        """A client of the same server whose requests wait behind nobody else's."""
        return KubeClient(self._api, self._on_request, self.clock)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._api.configuration.host)

    @property
    def configuration(self) -> Configuration:
        """The library's configuration: address, TLS and credentials."""
        return self._api.configuration

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object, read from the server.

        Raises:
            NotFound: there is none.
        """
        return await self._json("GET", kind, KINDS[kind].path(namespace, name))

    async def list_page(self, kind: str, namespace: str = "", **query: str) -> Json:
        """One page: the List object. `query` holds labelSelector, fieldSelector, limit, continue, resourceVersion."""
        return await self._json("GET", kind, KINDS[kind].path(namespace), query, verb="list")

    async def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> list[Json]:
        """All objects that a label and a field selector match, over all pages, with apiVersion and kind."""
        found: list[Json] = []
        async for items, _version in self.pages(kind, namespace, labels, fields):
            found += items
        return found

    async def pages(
        self, kind: str, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[tuple[Sequence[Json], str]]:
        """Pages of objects, each with the resourceVersion of the whole list."""
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query = {"limit": str(PAGE)} | {name: selector for name, selector in selectors.items() if selector}
        head = {"apiVersion": KINDS[kind].group_version, "kind": kind}
        while True:
            page = await self.list_page(kind, namespace, **query)
            metadata = page["metadata"]
            yield [head | item for item in page["items"]], str(metadata["resourceVersion"])
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def create(self, manifest: Json, manager: str, namespace: str = "", *, patience: float = 0.0) -> Json:
        """Create an object.

        Args:
            manifest: the object.
            manager: field manager.
            namespace: where, if the manifest does not say it.
            patience: for so many seconds other requests may go before it.

        Raises:
            Conflict: the name is taken.
        """
        kind = manifest["kind"]
        place = namespace or manifest["metadata"].get("namespace", "default")
        path = KINDS[kind].path(place)
        return await self._json("POST", kind, path, {"fieldManager": manager}, manifest, patience=patience)

    async def apply(self, manifest: Json, manager: str, *, force: bool = True) -> Json:
        """Server-side apply.

        Raises:
            Conflict: metadata.uid or metadata.resourceVersion does not hold.
        """
        head = manifest["metadata"]
        path = KINDS[manifest["kind"]].path(head.get("namespace", "default"), head["name"])
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._json("PATCH", manifest["kind"], path, query, manifest, content=APPLY, verb="apply")

    async def patch(
        self,
        kind: str,
        namespace: str,
        name: str,
        patch: Any,
        *,
        content: str = MERGE,
        subresource: str = "",
        manager: str = "",
    ) -> Json:
        """Merge patch (an object) or JSON patch (a list, with `content=JSON_PATCH`).

        Raises:
            NotFound: there is no such object.
            Conflict: a resourceVersion or uid in the patch does not hold.
        """
        path = KINDS[kind].path(namespace, name, subresource)
        query = {"fieldManager": manager} if manager else {}
        return await self._json("PATCH", kind, path, query, patch, content=content)

    async def replace(self, manifest: Json, *, subresource: str = "", manager: str = "") -> Json:
        """Write a whole object (PUT); its metadata.resourceVersion is the precondition.

        Raises:
            NotFound: there is no such object.
            Conflict: it is no longer at that resourceVersion.
        """
        head = manifest["metadata"]
        path = KINDS[manifest["kind"]].path(head.get("namespace", "default"), head["name"], subresource)
        query = {"fieldManager": manager} if manager else {}
        return await self._json("PUT", manifest["kind"], path, query, manifest)

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Json | None:
        """Ask for deletion; the object or Status that the server answers with, None if the object was gone.

        Raises:
            Conflict: an object of that name exists with another uid.
        """
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        if propagation is not None:
            body["propagationPolicy"] = propagation
        try:
            return await self._json("DELETE", kind, KINDS[kind].path(namespace, name), {}, body)
        except NotFound:
            return None

    async def create_subresource(self, kind: str, namespace: str, name: str, subresource: str, body: Json) -> Json:
        """POST to a subresource, such as binding, eviction or token.

        Raises:
            NotFound: there is no such object.
            Conflict: it cannot be done now.
        """
        return await self._json("POST", kind, KINDS[kind].path(namespace, name, subresource), {}, body)

    async def raw(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Json:
        """Any other request, such as a SelfSubjectRulesReview or /version."""
        return await self._json(method, "", path, query or {}, body)

    async def watch(
        self, kind: str, namespace: str = "", labels: str = "", resource_version: str = ""
    ) -> AsyncIterator[WatchEvent | str]:
        """Changes since a resourceVersion, for at most WATCH_SECONDS; a bookmark is yielded as its resourceVersion.

        Raises:
            ApiError: reason Expired when the resourceVersion is too old: list again.
            ApiUnavailable: the connection broke or fell silent.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"resourceVersion": resource_version} if resource_version else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)
        path = KINDS[kind].path(namespace)
        try:
            response = await self._send("GET", path, query, None, timeout=timeout)
            try:
                await self._check("watch", kind, response)
                while line := await response.content.readline(max_line_length=LONGEST_LINE):
                    yield _watch_event(read_json(line))
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiUnavailable(0, "ConnectionLost", f"watch of {kind}: {error!r}") from error

    async def log_lines(self, namespace: str, pod: str, query: Mapping[str, str] | None = None) -> AsyncIterator[bytes]:
        """Lines of a pod's log; `query` holds follow, tailLines, previous.

        Raises:
            NotFound: there is no such pod.
            ApiUnavailable: the connection broke.
        """
        path = KINDS["Pod"].path(namespace, pod, "log")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            response = await self._send("GET", path, query or {}, None, timeout=timeout)
            try:
                await self._check("log", "Pod", response)
                while line := await response.content.readline(max_line_length=LONGEST_LINE):
                    yield line
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiUnavailable(0, "ConnectionLost", f"log of pod {pod}: {error!r}") from error

    async def _json(
        self,
        method: str,
        kind: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content: str = "application/json",
        verb: str | None = None,
        patience: float = 0.0,
    ) -> Json:
        async with self.permits.taken(patience):
            return await self._retried(method, kind, path, query or {}, body, content, verb or method.lower())

    async def _retried(
        self, method: str, kind: str, path: str, query: Mapping[str, str], body: Any, content: str, verb: str
    ) -> Json:
        """Send, and send again what can be repeated when the server is busy or the connection broke."""
        for attempt in range(RETRIES):
            if method != "GET":
                self._fence()
            try:
                return await self._once(method, kind, path, query, body, content, verb)
            except ApiUnavailable as error:
                told = error.retry_seconds
                # Without an answer a write may have happened; the caller looks again. A refusal for overload is safe.
                if attempt + 1 == RETRIES or (method != "GET" and error.status != HTTPStatus.TOO_MANY_REQUESTS):
                    raise
            await asyncio.sleep(max(told, 0.2 * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self, method: str, kind: str, path: str, query: Mapping[str, str], body: Any, content: str, verb: str
    ) -> Json:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        data = None if body is None else write_json(body)
        sent = time.monotonic()
        try:
            response = await self._send(method, path, query, data, content, timeout)
            async with response:
                await self._check(verb, kind, response)
                answer: Json = read_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._tell(verb, kind, 0)
            raise ApiUnavailable(0, "ConnectionLost", f"{verb} {path}: {error!r}") from error
        if method != "GET":  # what a read takes depends on what is there
            self._pace.answered(verb, kind, time.monotonic() - sent)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        data: bytes | None,
        content: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": "videotrain"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, data)
        url = self.server + path + (f"?{_encoded(tuple(query.items()))}" if query else "")
        rest = self._api.rest_client
        if rest.pool_manager is None:
            # Watches hold connections, so the pool has no bound. Looking for a proxy costs a tenth of a request, each
            # time.
            connector = aiohttp.TCPConnector(limit=0, ssl=rest.ssl_context)
            rest.pool_manager = aiohttp.ClientSession(connector=connector, trust_env=bool(getproxies()))
        sent = time.monotonic()
        # Past the library's own request, which takes half as long again: it writes JSON by Python's writer and looks
        # through each request for what it is.
        response: aiohttp.ClientResponse = await rest.pool_manager.request(
            method,
            url,
            data=data,
            headers=headers,
            timeout=timeout,
            proxy=rest.proxy,
            proxy_headers=rest.proxy_headers,
            server_hostname=self.configuration.tls_server_name or None,
        )
        self._note_time(response, sent)
        return response

    def _note_time(self, response: aiohttp.ClientResponse, sent: float) -> None:
        told = response.headers.get("Date")
        if told is None:
            return
        try:
            self.clock.note(parsedate_to_datetime(told), sent, time.monotonic())
        except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
            _log.warning("an answer's Date header is no time and was not used: %.80r", told)

    async def _check(self, verb: str, kind: str, response: aiohttp.ClientResponse) -> None:
        self._tell(verb, kind, response.status)
        if response.status < HTTPStatus.BAD_REQUEST:
            return
        text = await response.text()
        try:
            status = json.loads(text)
        except json.JSONDecodeError:
            status = {}
        message = str(status.get("message") or text[:500] or response.reason)
        error = _error(response.status, str(status.get("reason") or response.reason), f"{verb} {kind}: {message}")
        if isinstance(error, ApiUnavailable):
            told = response.headers.get("Retry-After", "")
            error.retry_seconds = min(float(told), LONGEST_RETRY_SECONDS) if told.isdecimal() else 0.0
        raise error

    def _tell(self, verb: str, kind: str, status: int) -> None:
        if self._on_request is not None:
            self._on_request(verb, kind, status)


@lru_cache(maxsize=256)
def _encoded(query: tuple[tuple[str, str], ...]) -> str:
    """Most requests have one of a few queries."""
    return urlencode(query)


def _watch_event(event: Json) -> WatchEvent | str:
    body = event["object"]
    if event["type"] == "BOOKMARK":
        return str(body["metadata"]["resourceVersion"])
    if event["type"] == "ERROR":
        raise _error(int(body.get("code", 500)), str(body.get("reason")), f"watch: {body.get('message')}")
    return WatchEvent(event["type"], body)


def _error(status: int, reason: str, message: str) -> Exception:
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(message)
    if status == HTTPStatus.CONFLICT:
        return Conflict(message)
    if status in _RETRIED:
        return ApiUnavailable(status, reason, message)
    return ApiError(status, reason, message)
