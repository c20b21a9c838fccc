"""Certificates: an authority per control plane, and what it signs for servers and users."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from videotrain.controlplane.errors import ControlPlaneError
from videotrain.files import replace_file

_CA_DAYS: Final = 3650
_LEAF_DAYS: Final = 365
"""Leaves are signed anew at every start."""
_COMMON_NAME_MAX: Final = 64


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """The certificate authority of one control plane; its files stay over restarts."""

    def __init__(self, folder: Path) -> None:
        """Read the authority of a folder, or make one there."""
        self.folder = folder
        self.files = Pair(folder / "ca.crt", folder / "ca.key")
        self.service_account_key = folder / "service-account.key"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.service_account_key.is_file():  # written last: with it, everything is there
            self._make()
        self._certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        key = serialization.load_pem_private_key(self.files.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def server(self, name: str, hosts: Sequence[str]) -> Pair:
        """Sign a server's certificate for host names and IP addresses."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._leaf(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, stem: str, user: str, groups: Sequence[str]) -> Pair:
        """Sign a user's certificate.

        Args:
            stem: name of its files.
            user: name by which RBAC knows the user.
            groups: the user's groups beside system:authenticated.

        Raises:
            ControlPlaneError: the name is too long for a certificate.
        """
        if not 0 < len(user) <= _COMMON_NAME_MAX:
            raise ControlPlaneError(f"user {user!r}: a certificate names users of 1 to {_COMMON_NAME_MAX} characters")
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        return self._leaf(stem, subject, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "videotrain control plane")])
        builder = _builder(name, name, key.public_key(), _CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
        replace_file(self.files.key, _pem(key), private=True)
        replace_file(self.files.certificate, certificate.public_bytes(serialization.Encoding.PEM), private=True)
        replace_file(self.service_account_key, _pem(ec.generate_private_key(ec.SECP256R1())), private=True)

    def _leaf(
        self, stem: str, subject: x509.Name, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._certificate.subject, key.public_key(), _LEAF_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair = Pair(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")
        replace_file(pair.key, _pem(key), private=True)
        replace_file(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), private=True)
        return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(days=days),
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
