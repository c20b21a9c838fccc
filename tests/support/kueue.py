"""The real Kueue beside a real control plane: built once on a machine, with the CRDs and webhooks of its own module.

It runs as its installation lets it run, but for three things: a process on this machine instead of a Deployment, so
webhooks are reached by URL; certificates made here, since nobody projects the Secret of its own into a folder; and
integrations of workloads other than pods are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.plane_objects import create_namespace

from videotrain.controlplane import controllers
from videotrain.controlplane.component import Component
from videotrain.controlplane.controllers import Controller, Installation
from videotrain.controlplane.errors import BuildError
from videotrain.controlplane.plane import ControlPlane
from videotrain.processes.addresses import free_ports

Json = dict[str, Any]
MODULE = "sigs.k8s.io/kueue"
KUEUE = Controller("kueue", Path(__file__).with_name("kueue_module"), MODULE, f"{MODULE}/cmd/kueue")
NAMESPACE = "kueue-system"
SERVICE, SECRET = "kueue-webhook-service", "kueue-webhook-server-cert"
HOST = "127.0.0.1"


class NotToBeHad(Exception):
    """Kueue's modules cannot be fetched on this machine."""


def installation() -> Installation:
    """Kueue in the user's cache, built there if it is missing.

    Raises:
        NotToBeHad: there is no Go, or its modules cannot be fetched.
    """
    try:
        return controllers.installation(KUEUE)
    except BuildError as error:
        raise NotToBeHad(f"Kueue cannot be built here: {error}") from error


class Kueue:
    """Kueue's manager with its CRDs and webhooks in a control plane."""

    def __init__(self, plane: ControlPlane, found: Installation, folder: Path) -> None:
        self._plane, self._found, self._folder = plane, found, folder
        self._ports = dict(zip(("webhook", "health"), free_ports(2), strict=True))
        self._process = Component("kueue", folder / "component", folder / "kueue.log")
        self._authority: str

    def start(self) -> None:
        """Install everything, start the manager, and wait until it takes part in admission."""
        self._folder.mkdir(parents=True, exist_ok=True)
        create_namespace(self._plane, NAMESPACE)
        self._make_certificates()
        for manifest in self._crds():
            self._plane.install(manifest)
        for manifest in self._webhooks():
            path = f"/apis/admissionregistration.k8s.io/v1/{manifest['kind'].lower()}s/{manifest['metadata']['name']}"
            self._plane.api().apply(path, manifest, "test")
        self._start_manager()
        health = f"{HOST}:{self._ports['health']}"
        controllers.wait_until_ready(self._process, self._plane.api(), health, NAMESPACE)

    def stop(self) -> None:
        """End the manager."""
        self._process.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return self._process.tail(lines)

    def _start_manager(self) -> None:
        config = self._folder / "config.json"
        config.write_text(json.dumps(self._configuration()))
        user = self._plane.kubeconfig("kueue", ("system:masters",))
        command = [str(self._found.program), f"--config={config}", "--zap-log-level=3"]
        self._process.start(command, {"KUBECONFIG": str(user), "HOME": str(self._folder), "PATH": "/usr/bin:/bin"})

    def _configuration(self) -> Json:
        """The module's own configuration with the addresses of this machine."""
        (stock,) = self._found.documents("manager", "controller_manager_config.yaml")
        return stock | {
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"{HOST}:{self._ports['health']}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": HOST, "port": self._ports["webhook"], "certDir": str(self._folder)},
            "leaderElection": stock["leaderElection"] | {"resourceNamespace": NAMESPACE},
            "integrations": {"frameworks": ["pod"]},
            "featureGates": {"VisibilityOnDemand": False},
        }

    def _crds(self) -> Iterator[Json]:
        """Its CRDs, with the conversion webhooks that its installation adds."""
        (kustomization,) = self._found.documents("crd", "kustomization.yaml")
        patches = [next(self._found.documents("crd", patch["path"])) for patch in kustomization["patches"]]
        conversions = {patch["metadata"]["name"]: patch["spec"]["conversion"] for patch in patches}
        for path in kustomization["resources"]:
            (manifest,) = self._found.documents("crd", path)
            conversion = conversions.get(manifest["metadata"]["name"])
            if conversion is not None:
                self._reach(conversion["webhook"])
                manifest["spec"]["conversion"] = conversion
            yield manifest

    def _webhooks(self) -> Iterator[Json]:
        """Its webhook configurations under the names of its installation; not for the system's pods."""
        places = [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", NAMESPACE]}]
        for manifest in self._found.documents("webhook", "manifests.yaml"):
            manifest["metadata"] = {"name": f"kueue-{manifest['metadata']['name']}"}
            for webhook in manifest["webhooks"]:
                self._reach(webhook)
                if not webhook["rules"][0]["apiGroups"][0].startswith("kueue."):
                    webhook["namespaceSelector"] = {"matchExpressions": places}
            yield manifest

    def _reach(self, webhook: Json) -> None:
        """Let the API server reach a webhook in this process's place."""
        path = webhook["clientConfig"]["service"]["path"]
        url = f"https://{HOST}:{self._ports['webhook']}{path}"
        webhook["clientConfig"] = {"url": url, "caBundle": self._authority}

    def _make_certificates(self) -> None:
        """Put valid certificates where Kueue would put its own, so that it makes none.

        Its rotation wants a Secret with an authority of a certain name and with RSA keys, and the same in a folder,
        where a kubelet would have put the Secret. Its own would not be valid for an address.
        """
        authority, key = _certificate("kueue-ca", [x509.DNSName("kueue-ca")], None)
        names = [x509.DNSName(f"{SERVICE}.{NAMESPACE}.svc"), x509.IPAddress(ip_address(HOST))]
        serving, serving_key = _certificate(SERVICE, names, (authority, key))
        files = {"ca.crt": _pem(authority), "ca.key": _pem(key), "tls.crt": _pem(serving), "tls.key": _pem(serving_key)}
        for name, content in files.items():
            (self._folder / name).write_bytes(content)
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        self._authority = data["ca.crt"]
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
        self._plane.api().apply(f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}", secret, "test")


Signer = tuple[x509.Certificate, rsa.RSAPrivateKey]


def _certificate(name: str, names: list[x509.GeneralName], signer: Signer | None) -> Signer:
    """A certificate and its key; an authority if nobody signs it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=signer[0].subject if signer else subject,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(days=365),
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer[1] if signer else key, hashes.SHA256()), key


def _pem(item: x509.Certificate | rsa.RSAPrivateKey) -> bytes:
    if isinstance(item, x509.Certificate):
        return item.public_bytes(serialization.Encoding.PEM)
    return item.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
