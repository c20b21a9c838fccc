"""JobSet's controller beside a control plane, as its installation lets it run.

What differs: a process on this machine in place of a Deployment, so webhooks are reached by URL and with a certificate
made here; and its metrics are not served. Rights, flags, webhooks and their selectors are those of its own manifests.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scale import usage
from videotrain.controlplane.component import Component
from videotrain.controlplane.controllers import Controller, Installation, wait_until_ready
from videotrain.controlplane.pki import Authority
from videotrain.controlplane.plane import ControlPlane
from videotrain.processes.addresses import free_ports

Json = dict[str, Any]
MODULE: Final = "sigs.k8s.io/jobset"
JOBSET: Final = Controller("jobset", Path(__file__).with_name("jobset_module"), MODULE, MODULE)
NAMESPACE: Final = "jobset-system"
ACCOUNT: Final = "jobset-controller-manager"
HOST: Final = "127.0.0.1"
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"


class JobSetController:
    """The controller with its CRD, rights and webhooks in a control plane."""

    def __init__(self, plane: ControlPlane, found: Installation, folder: Path) -> None:
        self._plane, self._found, self._folder = plane, found, folder
        self._ports = dict(zip(("webhook", "health"), free_ports(2), strict=True))
        self._process = Component("jobset", folder / "component", folder / "jobset.log")

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process.running

    def start(self) -> None:
        """Install everything, start the controller, and wait until it serves its webhooks and leads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        authority = Authority(self._folder / "authority")
        serving = authority.server("jobset-webhook", [HOST])
        for source, name in ((serving.certificate, "tls.crt"), (serving.key, "tls.key")):
            shutil.copyfile(source, self._folder / name)
        self._bundle = base64.b64encode(authority.files.certificate.read_bytes()).decode()
        api = self._plane.api()
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        api.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace)
        for path, manifest in self._rights():
            api.apply(f"{_RBAC}{path}/{manifest['metadata']['name']}", manifest)
        (crd,) = self._found.documents("crd", "bases", "jobset.x-k8s.io_jobsets.yaml")
        self._plane.install(crd)
        for manifest in self._webhooks():
            path = f"/apis/admissionregistration.k8s.io/v1/{manifest['kind'].lower()}s/{manifest['metadata']['name']}"
            api.apply(path, manifest)
        self._start_process()
        wait_until_ready(self._process, api, f"{HOST}:{self._ports['health']}", NAMESPACE)

    def stop(self) -> None:
        """End the controller."""
        self._process.kill()

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            ComponentEnded: it has; the message holds the end of its log.
        """
        self._process.check()

    def cpu_seconds(self) -> float:
        """Of its process so far."""
        return usage.cpu_seconds(self._process.pid) if self._process.pid is not None else 0.0

    def memory(self) -> dict[str, float]:
        """Resident set and its peak, MiB."""
        assert self._process.pid is not None
        return usage.memory_mib(self._process.pid)

    def _start_process(self) -> None:
        (stock,) = self._found.documents("manager", "controller_manager_config.yaml")
        config = self._folder / "config.json"
        changed = {
            "internalCertManagement": {"enable": False},
            "webhook": {"host": HOST, "port": self._ports["webhook"], "certDir": str(self._folder)},
            "health": {"healthProbeBindAddress": f"{HOST}:{self._ports['health']}"},
            "leaderElection": stock["leaderElection"] | {"resourceNamespace": NAMESPACE},
        }
        config.write_text(json.dumps(stock | changed))
        user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        command = [str(self._found.program), f"--config={config}", "--metrics-bind-address=0"]
        environment = {"KUBECONFIG": str(self._plane.kubeconfig(user, groups)), "HOME": str(self._folder)}
        self._process.start(command, environment | {"PATH": "/usr/bin:/bin"})

    def _rights(self) -> Iterator[tuple[str, Json]]:
        """Its roles, bound to its own account under the names of its installation."""
        user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User"}
        user["name"] = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
        for file, kind in (("role.yaml", "ClusterRole"), ("leader_election_role.yaml", "Role")):
            where = "" if kind == "ClusterRole" else f"/namespaces/{NAMESPACE}"
            role = next(item for item in self._found.documents("rbac", file) if item["kind"] == kind)
            role["metadata"] = {"name": f"jobset-{role['metadata']['name']}"}
            yield f"{where}/{kind.lower()}s", role
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role["metadata"]["name"]}
            binding = {"apiVersion": role["apiVersion"], "kind": f"{kind}Binding", "metadata": role["metadata"]}
            yield f"{where}/{kind.lower()}bindings", binding | {"roleRef": reference, "subjects": [user]}

    def _webhooks(self) -> Iterator[Json]:
        """Its webhook configurations with the patches of its installation, which leave other pods alone."""
        patches = {"Mutating": "mutating-patch.yaml", "Validating": "validating-patch.yaml"}
        for manifest in self._found.documents("webhook", "manifests.yaml"):
            kind = manifest["kind"].removesuffix("WebhookConfiguration")
            changes: Any = next(self._found.documents("webhook", "patches", patches[kind]))
            for patch in changes:
                manifest["webhooks"][int(patch["path"].rpartition("/")[2])] = patch["value"]
            manifest["metadata"] = {"name": f"jobset-{manifest['metadata']['name']}"}
            for webhook in manifest["webhooks"]:
                path = webhook["clientConfig"]["service"]["path"]
                url = f"https://{HOST}:{self._ports['webhook']}{path}"
                webhook["clientConfig"] = {"url": url, "caBundle": self._bundle}
            yield manifest
