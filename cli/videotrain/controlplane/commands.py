"""The command line of each component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from videotrain.controlplane.pki import Authority, Pair
from videotrain.controlplane.settings import Kwok, Limits, Settings

HOST: Final = "127.0.0.1"
ETCD: Final = "etcd"
API_SERVER: Final = "kube-apiserver"
CONTROLLER_MANAGER: Final = "kube-controller-manager"
SCHEDULER: Final = "kube-scheduler"
KWOK: Final = "kwok"
NODE_CLIENT: Final = "kube-apiserver-kubelet-client"
"""The API server, as nodes know it."""
SERVICE_RANGE: Final = "10.96.0.0/16"
SERVICE_ADDRESS: Final = "10.96.0.1"
"""Address of the Service `kubernetes`, the first one of the range."""
PORTS: Final = ("etcd", "etcd-peer", API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KWOK)
USERS: Final = {
    CONTROLLER_MANAGER: "system:kube-controller-manager",
    SCHEDULER: "system:kube-scheduler",
    # Like a pod's user, so that it does not go past the API server's priorities as an administrator does.
    KWOK: "system:serviceaccount:kube-system:kwok",
}
"""Who each component is for the API server."""
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    KWOK: ("system:serviceaccounts", "system:serviceaccounts:kube-system"),
}


@dataclass(frozen=True)
class Layout:
    """What the command lines refer to."""

    directory: Path
    ports: Mapping[str, int]
    authority: Authority
    serving: Pair
    """Certificate with which every component serves."""
    node_client: Pair
    """Certificate of the API server where it asks nodes, NODE_CLIENT."""
    kubeconfigs: Mapping[str, Path]
    """Of the components that are clients of the API server."""

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{HOST}:{self.ports[API_SERVER]}"


def etcd(layout: Layout) -> list[str]:
    """The store. It may lose data when the machine crashes, and not when processes do."""
    client, peer = (f"http://{HOST}:{layout.ports[name]}" for name in ("etcd", "etcd-peer"))
    return [
        "--name=default", f"--data-dir={layout.directory / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        "--auto-compaction-mode=periodic", "--auto-compaction-retention=10m", "--quota-backend-bytes=4294967296",
        "--log-level=warn",
    ]  # fmt: skip


def api_server(layout: Layout, settings: Settings) -> list[str]:
    """The API server, with users by certificate and service accounts by token, and RBAC on."""
    toleration = settings.nodes.toleration_seconds
    key = layout.authority.service_account_key
    return [
        f"--etcd-servers=http://{HOST}:{layout.ports['etcd']}",
        f"--bind-address={HOST}", f"--advertise-address={HOST}", f"--secure-port={layout.ports[API_SERVER]}",
        # The reconciler would publish an address of this machine as the endpoint of the Service `kubernetes`, and
        # loopback addresses are not valid ones.
        "--endpoint-reconciler-type=none", f"--service-cluster-ip-range={SERVICE_RANGE}",
        *_serving(layout), f"--client-ca-file={layout.authority.files.certificate}",
        "--kubelet-preferred-address-types=InternalIP",  # names of nodes lead nowhere here
        f"--kubelet-client-certificate={layout.node_client.certificate}",
        f"--kubelet-client-key={layout.node_client.key}",
        # The nodes serve the metrics API, too.
        f"--proxy-client-cert-file={layout.node_client.certificate}",
        f"--proxy-client-key-file={layout.node_client.key}",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
        f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        # Nothing here forwards service addresses: webhooks are reached at the addresses of their pods.
        "--enable-aggregator-routing=true",
        f"--default-not-ready-toleration-seconds={toleration}",
        f"--default-unreachable-toleration-seconds={toleration}",
    ]  # fmt: skip


def controller_manager(layout: Layout, settings: Settings) -> list[str]:
    """All controllers, each as its own service account."""
    authority, nodes = layout.authority.files, settings.nodes
    return [
        *_client(layout, CONTROLLER_MANAGER, settings.profile.controllers), *_serving(layout),
        f"--service-account-private-key-file={layout.authority.service_account_key}",
        "--use-service-account-credentials=true", f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}", f"--cluster-signing-key-file={authority.key}",
        f"--node-monitor-period={nodes.period_seconds}s", f"--node-monitor-grace-period={nodes.grace_seconds}s",
    ]  # fmt: skip


def scheduler(layout: Layout, settings: Settings) -> list[str]:
    """Command line of kube-scheduler."""
    return [*_client(layout, SCHEDULER, settings.profile.scheduler), *_serving(layout)]


def kwok(layout: Layout, settings: Kwok, stages: Path) -> list[str]:
    """The controller of the fake nodes."""
    command = [
        f"--kubeconfig={layout.kubeconfigs[KWOK]}", f"--config={stages}", f"--cidr={settings.pod_range}",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", f"--node-ip={HOST}",
        f"--server-address={HOST}:{layout.ports[KWOK]}",
    ]  # fmt: skip
    return [*command, f"--node-lease-duration-seconds={settings.lease_seconds}"]


def _client(layout: Layout, component: str, limits: Limits) -> list[str]:
    return [
        f"--kubeconfig={layout.kubeconfigs[component]}", "--leader-elect=false",
        f"--kube-api-qps={limits.per_second}", f"--kube-api-burst={limits.burst}",
        f"--bind-address={HOST}", f"--secure-port={layout.ports[component]}",
    ]  # fmt: skip


def _serving(layout: Layout) -> list[str]:
    return [f"--tls-cert-file={layout.serving.certificate}", f"--tls-private-key-file={layout.serving.key}"]
