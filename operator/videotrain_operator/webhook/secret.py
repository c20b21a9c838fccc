"""The Secret that all replicas share: tls.crt, tls.key, ca.crt and, if it is ours, the authority's ca.key.

A Secret without our annotation was made by somebody else, such as cert-manager: it is used and never written.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from videotrain_api.schema import Json
from videotrain_api.vocabulary import ANNOTATION_ISSUED_BY, FIELD_MANAGER
from videotrain_operator.webhook.certificates import Material, belongs, certificates_pem, key_pem

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
AUTHORITY_KEY: Final = "ca.key"


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a Secret holds, and what is wrong with it."""

    material: Material
    ours: bool
    faults: tuple[str, ...]


def read_secret(secret: Mapping[str, Any]) -> Held:
    """Read a Secret; each part that cannot be used is left out and named in `faults`."""
    data = secret.get("data") or {}
    annotations = secret["metadata"].get("annotations") or {}
    faults: list[str] = []
    chain = _certificates(data, CERTIFICATE, faults)
    key = _key(data, KEY, faults)
    if chain and key is not None and not belongs(chain[0], key):
        faults.append(f"{KEY} is not the key of {CERTIFICATE}")
        key = None
    usable = bool(chain) and key is not None
    authorities, authority_key = _authorities(data, faults)
    material = Material(
        authorities=authorities,
        authority_key=authority_key,
        certificate=chain[0] if usable else None,
        key=key if usable else None,
        chain=chain[1:] if usable else (),
    )
    ours = annotations.get(ANNOTATION_ISSUED_BY) == FIELD_MANAGER or not data
    if not ours:  # its authorities may be trusted by other means
        faults = [fault for fault in faults if not fault.startswith((AUTHORITIES, AUTHORITY_KEY))]
    return Held(material=material, ours=ours, faults=tuple(faults))


def write_secret(material: Material, name: str, namespace: str, existing: Mapping[str, Any] | None) -> Json:
    """The Secret that holds `material`; one that replaces `existing` only if nobody wrote it since."""
    if material.certificate is None or material.key is None or material.authority_key is None:
        raise ValueError("material that cannot serve and renew is not stored")
    head: Json = {"name": name, "namespace": namespace}
    if existing is not None:
        kept = {name: value for name, value in existing["metadata"].items() if name in ("labels", "resourceVersion")}
        head |= kept
    old = (existing or {}).get("metadata", {}).get("annotations") or {}
    head["annotations"] = old | {ANNOTATION_ISSUED_BY: FIELD_MANAGER}
    parts = {
        CERTIFICATE: certificates_pem([material.certificate]),
        KEY: key_pem(material.key),
        AUTHORITIES: certificates_pem(material.authorities),
        AUTHORITY_KEY: key_pem(material.authority_key),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": (existing or {}).get("type", "kubernetes.io/tls"),
        "metadata": head,
        "data": {name: base64.b64encode(part).decode() for name, part in parts.items()},
    }


def _authorities(
    data: Mapping[str, str], faults: list[str]
) -> tuple[tuple[x509.Certificate, ...], ec.EllipticCurvePrivateKey | None]:
    found = _certificates(data, AUTHORITIES, faults)
    key = _key(data, AUTHORITY_KEY, faults)
    if found and isinstance(key, ec.EllipticCurvePrivateKey) and belongs(found[0], key):
        return found, key
    if found and key is not None:
        faults.append(f"{AUTHORITY_KEY} is not the key of the first certificate in {AUTHORITIES}")
    return found, None


def _certificates(data: Mapping[str, str], name: str, faults: list[str]) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(_part(data, name)))
    except ValueError as error:
        faults.append(f"{name}: {error}")
        return ()


def _key(data: Mapping[str, str], name: str, faults: list[str]) -> PrivateKeyTypes | None:
    try:
        return load_pem_private_key(_part(data, name), password=None)
    except (ValueError, TypeError) as error:  # TypeError: the key is encrypted
        faults.append(f"{name}: {error}")
        return None


def _part(data: Mapping[str, str], name: str) -> bytes:
    if not data.get(name):
        raise ValueError("is missing")
    try:
        return base64.b64decode(data[name], validate=True)
    except binascii.Error as error:
        raise ValueError(f"is no base64: {error}") from error
