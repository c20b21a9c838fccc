"""The master key of which the signing keys of all runs are made, in a Secret beside the Lease.

Every replica does the same and needs no leader: whoever comes first writes the key, at the resourceVersion that was
read, and the others read it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
from typing import Final

from videotrain_api.schema import Json
from videotrain_api.signing import KEY_BYTES
from videotrain_api.vocabulary import FIELD_MANAGER, SIGNING_KEY
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiUnavailable, KubeClient

AGAIN_SECONDS: Final = 1.0
"""After so long the Secret is read again, if the API server did not answer or another replica wrote it just now."""
_log = logging.getLogger(__name__)


class MasterKeyError(Exception):
    """The Secret holds something else; the message says what to do."""


async def read_master_key(client: KubeClient, namespace: str, name: str) -> bytes:
    """The master key; made if there is none yet.

    Raises:
        MasterKeyError: the Secret has a key that cannot be used.
        ApiError: the API server refuses.
    """
    while True:
        try:
            return await _read_or_make(client, namespace, name)
        except (ApiUnavailable, Conflict, NotFound) as error:
            _log.info("master key: secret=%s/%s, next try in %s s: %s", namespace, name, AGAIN_SECONDS, error)
            await asyncio.sleep(AGAIN_SECONDS)


async def _read_or_make(client: KubeClient, namespace: str, name: str) -> bytes:
    head: Json = {"name": name, "namespace": namespace}
    try:
        secret: Json | None = await client.get("Secret", namespace, name)
    except NotFound:
        secret = None
    text = ((secret or {}).get("data") or {}).get(SIGNING_KEY)
    if text is not None:
        return _decoded(text, f"Secret {namespace}/{name}")
    key = secrets.token_bytes(KEY_BYTES)
    made = (secret or {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": head}) | {
        "data": {SIGNING_KEY: base64.b64encode(key).decode()}
    }
    if secret is None:
        await client.create(made, FIELD_MANAGER, namespace)
    else:
        await client.replace(made, manager=FIELD_MANAGER)
    _log.warning(
        "master key: secret=%s/%s had none, and a new one was made; runs whose pods have another one save, and their "
        "pods are made anew",
        namespace,
        name,
    )
    return key


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MasterKeyError(f"{where}, data.{SIGNING_KEY}: no base64 ({error}); delete the Secret's data") from None
    if len(key) < KEY_BYTES:
        raise MasterKeyError(
            f"{where}, data.{SIGNING_KEY}: {len(key)} bytes, at least {KEY_BYTES} are needed; delete the Secret's data "
            "for a new key (the pods of all runs are then made anew, after they have saved)"
        )
    return key
