"""A release of the chart on a real control plane, and its operator as a process of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from support.chart import CHART, NAMESPACE, RELEASE, Json
from support.controlplane import Run

from videotrain.controlplane.plane import ControlPlane
from videotrain.processes.addresses import free_ports

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
SECONDS = 180.0
_SERVICE_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True)
class Release:
    """An installed release."""

    helm: Run
    kubectl: Run

    def install(self, values: Json, *more: str) -> None:
        """`helm upgrade --install` of the chart into its own namespace."""
        self.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace",
            "--values", "-", *more, stdin=json.dumps(values),
        )  # fmt: skip

    def uninstall(self) -> None:
        """`helm uninstall`, until everything is gone."""
        self.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--cascade", "foreground")

    def flags(self) -> list[str]:
        """Flags of the operator, from its Deployment."""
        deployment = self.kubectl("-n", NAMESPACE, "get", "deployment", RELEASE, "-o", "json").stdout
        (container,) = json.loads(deployment)["spec"]["template"]["spec"]["containers"]
        return list(container["args"])

    @contextmanager
    def operator(self, plane: ControlPlane, folder: Path) -> Iterator[Path]:
        """The operator with the release's flags and service account, as a pod would have them; yields its log."""
        root, log = folder / "root", folder / "operator.log"
        _write_pod_files(plane, root)
        address = urlsplit(plane.server)
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        env |= {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)}
        env |= {"VIDEOTRAIN_POD_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
        env.pop("KUBECONFIG", None)
        program = Path(sys.executable).with_name("videotrain-operator")
        flags = self.flags()
        flags += ["--http-port=0", "--lease-seconds=5"]
        if any(flag.startswith("--webhook-port") for flag in flags):
            flags.append(f"--webhook-port={free_ports(1)[0]}")
        with log.open("wb") as output:
            process = subprocess.Popen([program, "run", *flags], env=env, stdout=output, stderr=output)
        try:
            yield log
            assert process.poll() is None, f"the operator ended:\n{log.read_text()[-4000:]}"
        finally:
            process.terminate()
            process.wait(60)


def _write_pod_files(plane: ControlPlane, root: Path) -> None:
    """What a kubelet projects into the pod."""
    place = root / _SERVICE_ACCOUNT
    place.mkdir(parents=True)
    (place / "token").write_text(token(plane, RELEASE))
    (place / "namespace").write_text(NAMESPACE)
    shutil.copy(plane.authority_file, place / "ca.crt")


def token(plane: ControlPlane, name: str) -> str:
    """A token of a service account in the release's namespace, which is made if it is missing."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
    plane.api().apply(path, account)
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    return str(plane.api().request("POST", f"{path}/token", body)["status"]["token"])


def scrape(log: Path, bearer: str = "") -> int:
    """HTTP status of /metrics of the operator that writes this log."""
    until(lambda: "serving /metrics" in log.read_text(), lambda: "the operator does not serve")
    found = re.search(r"serving /metrics.* on port (\d+)", log.read_text())
    assert found is not None
    request = Request(f"http://127.0.0.1:{found[1]}/metrics")
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = SECONDS) -> None:
    """Wait for a condition that nobody announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)
