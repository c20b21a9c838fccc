"""Keeps the serving certificate in its Secret and the authority in the webhook configuration.

Every replica does the same and needs no leader: the Secret is created by whoever comes first and replaced only at the
resourceVersion that was read; the configuration is patched only if it lacks something.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from videotrain_api.schema import Json
from videotrain_api.vocabulary import FIELD_MANAGER
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import JSON_PATCH, ApiError, KubeClient
from videotrain_operator.webhook.certificates import (
    Material,
    certificates_pem,
    fingerprint,
    settle,
    trust,
)
from videotrain_operator.webhook.secret import read_secret, write_secret

CONFIGURATION: Final = "ValidatingWebhookConfiguration"
INJECTED: Final = "cert-manager.io/inject-"
"""Annotations with this prefix ask cert-manager to set caBundle; then it is not ours to write."""
ATTEMPTS: Final = 5
"""Replicas that write at the same time read again; each attempt fails only because another one succeeded."""
_INVALID: Final = 422
_log = logging.getLogger(__name__)


class UnusableSecret(Exception):
    """Somebody else's Secret holds no certificate that can be served."""


class Provisioner:
    """Reads, repairs and renews. Holds no state of its own but what it has already complained about."""

    def __init__(
        self, client: KubeClient, *, names: Sequence[str], namespace: str, secret: str, configuration: str
    ) -> None:
        self._client = client
        self._namespace, self._secret, self._configuration = namespace, secret, configuration
        self._names = names
        self._told_missing = False

    async def look(self, now: datetime) -> Material:
        """The certificate to serve with, after the Secret and the configuration were put right.

        Raises:
            UnusableSecret: the Secret is not ours and holds nothing that can be served.
            ApiError: the API server did not answer, or refused.
            Conflict, NotFound: others kept writing or deleting what was read.
        """
        for _ in range(ATTEMPTS):
            try:
                configuration = await self._read_configuration()
                # Settled before it is registered, and by what is trusted now: nobody signs with what no one trusts yet.
                material = await self._settled(_trusted(configuration), now)
                if configuration is not None:
                    await self._register(configuration, material, now)
            except (Conflict, NotFound) as conflict:  # another replica wrote, or somebody deleted
                last = conflict
            else:
                return material
        raise last

    async def _settled(self, trusted: frozenset[bytes] | None, now: datetime) -> Material:
        try:
            existing: Json | None = await self._client.get("Secret", self._namespace, self._secret)
        except NotFound:
            existing = None
        held = read_secret(existing) if existing is not None else None
        if held is not None and not held.ours:
            # Somebody else's, such as cert-manager's: what is wrong with it is theirs to repair.
            if held.material.certificate is None:
                where, faults = f"Secret {self._namespace}/{self._secret}", "; ".join(held.faults)
                raise UnusableSecret(f"{where} was not made by videotrain and cannot be served: {faults}")
            return held.material
        if held is not None and held.faults and existing and existing.get("data"):
            _log.warning("secret=%s/%s repaired: %s", self._namespace, self._secret, "; ".join(held.faults))
        wanted = settle(held.material if held else None, self._names, now, trusted)
        if held is None or wanted is not held.material:
            secret = write_secret(wanted, self._secret, self._namespace, existing)
            if existing is None:
                await self._client.create(secret, FIELD_MANAGER, self._namespace)
            else:
                await self._client.replace(secret, manager=FIELD_MANAGER)
            _log.info("secret=%s/%s written", self._namespace, self._secret)
        return wanted

    async def _read_configuration(self) -> Json | None:
        try:
            return await self._client.get(CONFIGURATION, "", self._configuration)
        except NotFound:
            if not self._told_missing:
                _log.warning("there is no %s %s: nobody will call the webhook", CONFIGURATION, self._configuration)
            self._told_missing = True
            return None

    async def _register(self, configuration: Json, material: Material, now: datetime) -> None:
        """Put the authorities into every webhook of the configuration that lacks one."""
        annotations = configuration["metadata"].get("annotations") or {}
        if any(name.startswith(INJECTED) for name in annotations):
            return
        patch = _bundle_patch(configuration, material, now)
        if not patch:
            return
        version = configuration["metadata"]["resourceVersion"]
        held = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        try:
            await self._client.patch(
                CONFIGURATION, "", self._configuration, [held, *patch], content=JSON_PATCH, manager=FIELD_MANAGER
            )
        except ApiError as error:
            if error.status != _INVALID:
                raise
            raise Conflict(f"{CONFIGURATION} {self._configuration} changed while it was patched") from error
        _log.info("configuration=%s caBundle written", self._configuration)


def _bundle_patch(configuration: Mapping[str, Any], material: Material, now: datetime) -> list[Json]:
    patch = []
    for number, webhook in enumerate(configuration.get("webhooks") or []):
        held = _bundle(webhook)
        wanted = trust(material, held, now)
        if {fingerprint(c) for c in wanted} != {fingerprint(c) for c in held}:
            value = base64.b64encode(certificates_pem(wanted)).decode()
            patch.append({"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": value})
    return patch


def _trusted(configuration: Mapping[str, Any] | None) -> frozenset[bytes] | None:
    """Fingerprints of what every webhook of the configuration trusts; None if there is no webhook."""
    bundles = [{fingerprint(c) for c in _bundle(webhook)} for webhook in (configuration or {}).get("webhooks") or []]
    return frozenset(set.intersection(*bundles)) if bundles else None


def _bundle(webhook: Mapping[str, Any]) -> list[x509.Certificate]:
    """Certificates of a caBundle; none if it cannot be read, since it then has to be written anew."""
    text = webhook["clientConfig"].get("caBundle") or ""
    try:
        return x509.load_pem_x509_certificates(base64.b64decode(text))
    except (ValueError, binascii.Error):
        return []
