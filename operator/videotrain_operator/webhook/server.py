"""The HTTPS server of the validating webhook, on every replica.

Manifests are checked in child processes, so that none holds up the operator's event loop or ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web

from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.http_server import Connections, listen, serving
from videotrain_operator.kube.client import ApiError, KubeClient
from videotrain_operator.webhook.certificates import Material, certificates_pem, fingerprint, key_pem, service_names
from videotrain_operator.webhook.judge import JudgeDied, Judges
from videotrain_operator.webhook.provision import Provisioner, UnusableSecret
from videotrain_operator.webhook.review import BadReview, Outcome
from videotrain_operator.webhook.seats import NoSeat, Seats

LOOK_SECONDS: Final = 60.0
"""Between two looks at the Secret: a renewed certificate is served this soon."""
FIRST_RETRY_SECONDS: Final = 1.0
LARGEST_BODY: Final = 2 * 3 * 1024**2 + 256 * 1024
"""An update carries two objects, the API server takes none above 3 MiB, and who asks for what is said beside them.

Objects that can be stored are smaller: etcd takes 1.5 MiB by default.
"""
REVIEW_SECONDS: Final = 8.0
"""Longest time for one review, with its body; the API server waits 10 s by default."""
BODY_SECONDS: Final = 3.0
"""Longest time for a body alone, which the API server sends at once."""
MOST_AT_ONCE: Final = 8
"""Reviews that are read and judged at the same time, bodies in memory."""
MOST_OF_ONE: Final = 4
"""The same, of one address: whoever floods keeps half of them free for the API server."""
MOST_WAITING: Final = 192
"""Reviews of one address that wait; more are told to come back, which the API server does by itself."""
RETRY_AFTER: Final = {"Retry-After": "1"}
_log = logging.getLogger(__name__)


class UnusableAuthority(Exception):
    """The file of the callers' authorities cannot be read, or holds no certificate."""


class Webhook:
    """Serves `POST /validate` under a certificate that it makes, shares, registers and renews by itself."""

    def __init__(
        self,
        client: KubeClient,
        *,
        address: str = "",
        port: int,
        service: str,
        namespace: str,
        secret_namespace: str,
        secret: str,
        configuration: str,
        client_ca: str = "",
        client_names: frozenset[str] = frozenset(),
        pod_policy: PodPolicy = DEFAULT_POD_POLICY,
    ) -> None:
        """Nothing happens before `run`.

        Args:
            client: the API server.
            address: where to listen; every address if empty.
            port: TCP port; 0 takes any free one, which then stands in `port`.
            service: Service under which the API server calls.
            namespace: of the Service.
            secret_namespace: of the Secret.
            secret: Secret of the certificate; made if there is none.
            configuration: ValidatingWebhookConfiguration that gets the authority.
            client_ca: PEM file of the authorities of the callers' certificates; callers need none if empty.
            client_names: common names that those may have; any if empty.
            pod_policy: what worker pods have to keep to.
        """
        self._address = address
        self.port = port
        self.ready = False
        """Whether reviews are being answered."""
        self.reviews: dict[Outcome, int] = {"allowed": 0, "denied": 0, "skipped": 0, "failed": 0}
        """Answers given since the start, by outcome."""
        self._provisioner = Provisioner(
            client,
            names=service_names(service, namespace),
            namespace=secret_namespace,
            secret=secret,
            configuration=configuration,
        )
        self._client_ca, self._client_names = client_ca, client_names
        self._context: ssl.SSLContext
        self._served = b""
        self.judges = Judges(pod_policy=pod_policy)
        self._seats = Seats(MOST_AT_ONCE, MOST_OF_ONE, MOST_WAITING)
        self._refused = {"busy": 0, "large": 0, "malformed": 0, "slow": 0, "stranger": 0}
        self._connections: Connections | None = None

    def refused(self) -> dict[str, int]:
        """Connections and requests that were ended unread since the start, by reason."""
        dropped = self._connections.dropped if self._connections else {}
        return {reason: self._refused.get(reason, 0) + dropped.get(reason, 0) for reason in (*self._refused, *dropped)}

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the port is taken.
        """
        retry = FIRST_RETRY_SECONDS
        while not await self.look():
            await asyncio.sleep(retry)
            retry = min(2 * retry, LOOK_SECONDS)
        application = web.Application()
        application.router.add_post("/validate", self._validate)
        listener = listen(self._address, self.port)
        self.port = listener.getsockname()[1]
        try:
            async with self.judges, serving(application, listener, context=lambda: self._context) as connections:
                self._connections, self.ready = connections, True
                _log.info("webhook port=%d serving", self.port)
                while True:
                    await asyncio.sleep(LOOK_SECONDS)
                    await self.look()
        finally:
            self.ready = False

    async def look(self) -> bool:
        """Put Secret and configuration right and serve with what the Secret holds; False if that failed for now."""
        try:
            self._load(await self._provisioner.look(datetime.now(UTC)))
        except (ApiError, Conflict, NotFound, UnusableSecret, UnusableAuthority) as error:
            _log.warning("webhook certificate: %s; trying again", error)
            return False
        return True

    def _load(self, material: Material) -> None:
        """Serve new connections with this certificate, and to callers of the authority that its file holds now."""
        if material.certificate is None or material.key is None:
            raise UnusableSecret("there is no certificate to serve with")
        try:
            authority = Path(self._client_ca).read_text() if self._client_ca else None
        except (OSError, ValueError) as error:
            raise UnusableAuthority(f"--webhook-client-ca={self._client_ca}: {error}") from error
        mark = fingerprint(material.certificate) + (authority or "").encode()
        if mark == self._served:
            return
        pem = certificates_pem([material.certificate, *material.chain]) + key_pem(material.key)
        self._context, self._served = _tls(pem, authority), mark
        _log.info("webhook certificate until=%s loaded", material.certificate.not_valid_after_utc.isoformat())

    async def _validate(self, request: web.Request) -> web.Response:
        self._admit(request)
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._seats.taken(request.remote or ""):
                if request.transport is None:  # whoever waited for this answer has gone
                    raise web.HTTPServiceUnavailable
                outcome, review = await self.judges.judge(await self._read(request))
        except BadReview as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except NoSeat as error:
            self._refused["busy"] += 1
            raise web.HTTPTooManyRequests(text=f"{error}\n", headers=RETRY_AFTER) from error
        except TimeoutError as error:
            self.reviews["failed"] += 1
            raise web.HTTPServiceUnavailable(
                text=f"no answer within {REVIEW_SECONDS} s\n", headers=RETRY_AFTER
            ) from error
        except JudgeDied as error:
            self.reviews["failed"] += 1
            _log.warning("webhook review=failed: %s", error)
            raise web.HTTPInternalServerError(text=f"the checks ended without an answer: {error}\n") from error
        self.reviews[outcome] += 1
        return web.json_response(review)

    def _admit(self, request: web.Request) -> None:
        """Refuse what need not be read.

        Raises:
            HTTPException: the answer.
        """
        if self._client_names and not self._client_names & _common_names(request):
            self._refused["stranger"] += 1
            raise web.HTTPForbidden(text="the client certificate has none of the names of --webhook-client-names\n")
        if (request.content_length or 0) > LARGEST_BODY:
            self._refused["large"] += 1
            raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)

    async def _read(self, request: web.Request) -> bytearray:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.content.iter_any():
                    body += part
                    if len(body) > LARGEST_BODY:
                        self._refused["large"] += 1
                        raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, len(body))
        except TimeoutError as error:
            self._refused["slow"] += 1
            raise web.HTTPServiceUnavailable(
                text=f"no whole body within {BODY_SECONDS} s\n", headers=RETRY_AFTER
            ) from error
        except (web.RequestPayloadError, ConnectionError) as error:
            self._refused["malformed"] += 1
            raise web.HTTPBadRequest(text="the body broke off, or its chunks are none\n") from error
        return body


def _common_names(request: web.Request) -> set[str]:
    """Of the caller's certificate, which its TLS handshake has verified."""
    transport = request.transport
    certificate = (transport.get_extra_info("peercert") if transport is not None else None) or {}
    return {value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"}


def _tls(pem: bytes, client_authority: str | None) -> ssl.SSLContext:
    """Serve with key and certificates from memory: the library reads files only, and a key should not lie on a disk.

    Raises:
        UnusableAuthority: there is no certificate in the authority of the callers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    descriptor = os.memfd_create("webhook", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=client_authority)
        except (ssl.SSLError, ValueError, TypeError) as error:
            raise UnusableAuthority(f"--webhook-client-ca holds no PEM of a certificate: {error}") from error
    return context
