"""The HTTPS server of the validating webhook, on every replica.

Manifests are checked in child processes, so that none holds up the operator's event loop or ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient
from videotrain_operator.webhook.certificates import Material, certificates_pem, fingerprint, key_pem, service_names
from videotrain_operator.webhook.judge import JudgeDied, Judges
from videotrain_operator.webhook.provision import Provisioner, UnusableSecret
from videotrain_operator.webhook.review import BadReview, Outcome

LOOK_SECONDS: Final = 60.0
"""Between two looks at the Secret: a renewed certificate is served this soon."""
FIRST_RETRY_SECONDS: Final = 1.0
LARGEST_BODY: Final = 8 * 1024 * 1024
"""An update carries two objects, and the API server takes requests of 3 MiB."""
REVIEW_SECONDS: Final = 8.0
"""Longest time for one review, with its body; the API server waits 10 s by default."""
BODY_SECONDS: Final = 3.0
"""Longest time for a body alone, which the API server sends at once."""
MOST_AT_ONCE: Final = 16
"""Reviews that are read and judged at the same time."""
CLOSE_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


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
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._served: bytes | None = None
        self._judges = Judges()
        self._seats = asyncio.Semaphore(MOST_AT_ONCE)

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the port is taken.
        """
        retry = FIRST_RETRY_SECONDS
        while not await self.look():
            await asyncio.sleep(retry)
            retry = min(2 * retry, LOOK_SECONDS)
        async with self._judges, self._listening():
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                await self.look()

    async def look(self) -> bool:
        """Put Secret and configuration right and serve with what the Secret holds; False if that failed for now."""
        try:
            self._load(await self._provisioner.look(datetime.now(UTC)))
        except (ApiError, Conflict, NotFound, UnusableSecret) as error:
            _log.warning("webhook certificate: %s; trying again", error)
            return False
        return True

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_post("/validate", self._validate)
        listener = _listener(self._address, self.port)
        self.port = listener.getsockname()[1]
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, listener, ssl_context=self._context).start()
            self.ready = True
            _log.info("webhook port=%d serving", self.port)
            yield
        finally:
            self.ready = False
            await runner.cleanup()

    def _load(self, material: Material) -> None:
        """Serve new connections with this certificate."""
        if material.certificate is None or material.key is None:
            raise UnusableSecret("there is no certificate to serve with")
        mark = fingerprint(material.certificate)
        if mark == self._served:
            return
        pem = certificates_pem([material.certificate, *material.chain]) + key_pem(material.key)
        _load_pem(self._context, pem)
        self._served = mark
        _log.info("webhook certificate until=%s loaded", material.certificate.not_valid_after_utc.isoformat())

    async def _validate(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                # Bodies in memory at the same time: the others wait outside, in the buffers of their sockets.
                async with self._seats:
                    async with asyncio.timeout(BODY_SECONDS):
                        body = await request.read()
                    outcome, review = await self._judges.judge(body)
        except BadReview as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except TimeoutError as error:
            self.reviews["failed"] += 1
            raise web.HTTPServiceUnavailable(text=f"no answer within {REVIEW_SECONDS} s\n") from error
        except JudgeDied as error:
            self.reviews["failed"] += 1
            _log.warning("webhook review=failed: %s", error)
            raise web.HTTPInternalServerError(text="the checks ended without an answer\n") from error
        self.reviews[outcome] += 1
        return web.json_response(review)


def _listener(address: str, port: int) -> socket.socket:
    """One socket, for both families of addresses if no address is given, so that port 0 means one port."""
    if address:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Load key and certificates from memory: the library reads files only, and a key should not lie on a disk."""
    descriptor = os.memfd_create("webhook", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
