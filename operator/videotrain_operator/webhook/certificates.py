"""An own certificate authority for one webhook: keys, certificates, and when each has had its day.

Pure, apart from the randomness of keys and serial numbers: `now` is an argument. The authority signs the serving
certificate of one Service and nothing else; the API server trusts it for one webhook configuration only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE: Final = timedelta(days=3650)
SERVING_LIFE: Final = timedelta(days=365)
SKEW: Final = timedelta(hours=1)
"""Certificates are valid from so long ago, since the API server's clock may be behind this one's."""
OVERLAP: Final = timedelta(days=1)
"""An authority is trusted for so long after its last certificate was replaced: far longer than a replica takes to
load the new one."""
_LOCAL: Final = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that is needed to serve and to renew."""

    authorities: tuple[x509.Certificate, ...]
    """Newest first; the others stay until nobody serves with a certificate that they signed."""
    authority_key: ec.EllipticCurvePrivateKey | None
    """Of the first authority; None if it was lost."""
    certificate: x509.Certificate | None
    """The serving certificate; None if it cannot be used."""
    key: PrivateKeyTypes | None
    chain: tuple[x509.Certificate, ...] = ()
    """Intermediate certificates that are sent along; only somebody else's authority has any."""


def service_names(service: str, namespace: str) -> tuple[str, ...]:
    """Names under which the API server may call a Service."""
    return (f"{service}.{namespace}.svc", service, f"{service}.{namespace}", f"{service}.{namespace}.svc.cluster.local")


def settle(held: Material | None, names: Sequence[str], now: datetime, trusted: frozenset[bytes] | None) -> Material:
    """What the Secret should hold now; `held` itself if nothing is due.

    A new authority is announced first and signs only once the API server trusts it, so that no replica ever serves
    with a certificate that would be refused.

    Args:
        held: what it holds; None if there is none.
        names: DNS names that the serving certificate must cover.
        now: the time, aware.
        trusted: fingerprints of the authorities that the API server trusts; None if it does not call us at all.
    """
    usable = held is not None and held.certificate is not None and not _expired(held.certificate, now)
    if held is None or not held.authorities or (not usable and _replaced(held, now)):
        return _fresh(names, now)
    if _replaced(held, now):
        authority, key = new_authority(now)
        return replace(held, authorities=(authority, *held.authorities), authority_key=key)
    first = held.authorities[0]
    may_sign = not usable or trusted is None or fingerprint(first) in trusted
    if may_sign and _serving_due(held, names, now):
        return _with_serving(held, names, now)
    return _without_retired(held, now)


def retired(material: Material, now: datetime) -> bool:
    """Whether every replica has long been serving with a certificate of the newest authority."""
    certificate = material.certificate
    if certificate is None or not material.authorities or not issued_by(certificate, material.authorities[0]):
        return False
    return now > certificate.not_valid_before_utc + SKEW + OVERLAP


def trust(material: Material, existing: Iterable[x509.Certificate], now: datetime) -> tuple[x509.Certificate, ...]:
    """The authorities that the API server should trust: those held, and for a while those that it trusts already."""
    kept = () if retired(material, now) else tuple(existing)
    alive = [certificate for certificate in (*material.authorities, *kept) if not _expired(certificate, now)]
    return tuple({fingerprint(certificate): certificate for certificate in alive}.values())


def new_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed authority with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"videotrain webhook {now:%Y-%m-%d}")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


def new_serving(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A serving certificate for a Service, and for a webhook that is registered by its address on this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "videotrain-webhook")])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in (*names, "localhost")]
    alternatives.append(x509.IPAddress(ipaddress.ip_address(_LOCAL)))
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _builder(subject, authority.subject, key.public_key(), now, SERVING_LIFE)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(known, critical=False)
    )
    return builder.sign(authority_key, hashes.SHA256()), key


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def belongs(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Whether a private key is that of a certificate."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate."""
    return certificate.fingerprint(hashes.SHA256())


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """PEM of several certificates, one after another."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKeyTypes) -> bytes:
    """Unencrypted PKCS 8 PEM of a private key."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _fresh(names: Sequence[str], now: datetime) -> Material:
    authority, key = new_authority(now)
    empty = Material(authorities=(authority,), authority_key=key, certificate=None, key=None)
    return _with_serving(empty, names, now)


def _with_serving(held: Material, names: Sequence[str], now: datetime) -> Material:
    if held.authority_key is None:
        raise ValueError("the authority's key is needed to sign")
    certificate, key = new_serving(held.authorities[0], held.authority_key, names, now)
    return replace(held, certificate=certificate, key=key, chain=())


def _without_retired(held: Material, now: datetime) -> Material:
    if len(held.authorities) == 1 or not retired(held, now):
        return held
    return replace(held, authorities=held.authorities[:1])


def _replaced(held: Material, now: datetime) -> bool:
    """The newest authority cannot sign any more, or not for the life of another serving certificate."""
    return held.authority_key is None or _due(held.authorities[0], now)


def _serving_due(held: Material, names: Sequence[str], now: datetime) -> bool:
    certificate = held.certificate
    if certificate is None or _due(certificate, now) or certificate.not_valid_before_utc > now:
        return True
    return not issued_by(certificate, held.authorities[0]) or not set(names) <= set(_dns_names(certificate))


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def _due(certificate: x509.Certificate, now: datetime) -> bool:
    """Two thirds of its life are over."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= start + (end - start) * 2 / 3


def _expired(certificate: x509.Certificate, now: datetime) -> bool:
    return now >= certificate.not_valid_after_utc


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
