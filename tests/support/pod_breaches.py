"""Pod templates that break a Pod Security Standard, or what is asked of worker pods beyond those."""

from __future__ import annotations

from typing import Any, Final

from support.pod_templates import RESTRICTED

Json = dict[str, Any]


def worker(**fields: Any) -> Json:
    """A template that changes the worker's container."""
    return {"containers": [{"name": "worker", **fields}]}


def context(**fields: Any) -> Json:
    """A template that changes the security context of the worker's container."""
    return worker(securityContext=fields)


def whole(**fields: Any) -> Json:
    """A template that changes the security context of the pod."""
    return {"securityContext": fields}


def volume(**source: Any) -> Json:
    """A template that adds a volume."""
    return {"volumes": [{"name": "more", **source}]}


def sidecar(**fields: Any) -> Json:
    """A template that adds a container."""
    return {"containers": [{"name": "side", "image": "i", **fields}]}


_SPEC: Final = "spec.podTemplate.spec"
_WORKER: Final = f"{_SPEC}.containers[0]"
_CONTEXT: Final = f"{_WORKER}.securityContext"

BASELINE: Final[dict[str, tuple[Json, str]]] = {
    "host network": ({"hostNetwork": True}, f"{_SPEC}.hostNetwork"),
    "host processes": ({"hostPID": True}, f"{_SPEC}.hostPID"),
    "host ipc": ({"hostIPC": True}, f"{_SPEC}.hostIPC"),
    "host process of windows": (
        whole(windowsOptions={"hostProcess": True}),
        f"{_SPEC}.securityContext.windowsOptions.hostProcess",
    ),
    "privileged": (context(privileged=True, allowPrivilegeEscalation=True), f"{_CONTEXT}.privileged"),
    "capability": (context(capabilities={"add": ["IPC_LOCK"]}), f"{_CONTEXT}.capabilities.add[0]"),
    "host path": (volume(hostPath={"path": "/"}), f"{_SPEC}.volumes[0].hostPath"),
    "host port": (worker(ports=[{"containerPort": 9410, "hostPort": 9410}]), f"{_WORKER}.ports[0].hostPort"),
    "host of a probe": (
        worker(readinessProbe={"httpGet": {"host": "10.0.0.1"}}),
        f"{_WORKER}.readinessProbe.httpGet.host",
    ),
    "host of a hook": (
        worker(lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 80}}}),
        f"{_WORKER}.lifecycle.preStop.httpGet.host",
    ),
    "apparmor": (context(appArmorProfile={"type": "Unconfined"}), f"{_CONTEXT}.appArmorProfile.type"),
    "selinux type": (whole(seLinuxOptions={"type": "spc_t"}), f"{_SPEC}.securityContext.seLinuxOptions.type"),
    "selinux user": (context(seLinuxOptions={"user": "root"}), f"{_CONTEXT}.seLinuxOptions.user"),
    "proc mount": (context(procMount="Unmasked"), f"{_CONTEXT}.procMount"),
    "seccomp": (context(seccompProfile={"type": "Unconfined"}), f"{_CONTEXT}.seccompProfile.type"),
    "seccomp of the pod": (
        whole(seccompProfile={"type": "Unconfined"}),
        f"{_SPEC}.securityContext.seccompProfile.type",
    ),
    "sysctl": (
        whole(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
        f"{_SPEC}.securityContext.sysctls[0].name",
    ),
    "init container": (
        {"initContainers": [{"name": "i", "image": "i", "securityContext": {"capabilities": {"add": ["BPF"]}}}]},
        f"{_SPEC}.initContainers[0].securityContext.capabilities.add[0]",
    ),
}  # fmt: skip
"""What the baseline standard refuses: template and field."""

RESTRICTED_ONLY: Final[dict[str, tuple[Json, str]]] = {
    "volume type": (volume(nfs={"server": "s", "path": "/"}), f"{_SPEC}.volumes[0].nfs"),
    "escalation": (context(allowPrivilegeEscalation=True), f"{_CONTEXT}.allowPrivilegeEscalation"),
    "root": (whole(runAsUser=0, runAsNonRoot=False), f"{_SPEC}.securityContext.runAsUser"),
    "root in the container": (context(runAsUser=0), f"{_CONTEXT}.runAsUser"),
    "perhaps root": (whole(runAsNonRoot=None), f"{_SPEC}.containers[name=worker].securityContext.runAsNonRoot"),
    "no seccomp": (
        whole(seccompProfile=None),
        f"{_SPEC}.containers[name=worker].securityContext.seccompProfile.type",
    ),
    "kept capabilities": (context(capabilities={"drop": ["NET_RAW"]}), f"{_CONTEXT}.capabilities.drop"),
    "allowed by baseline": (context(capabilities={"add": ["CHOWN"]}), f"{_CONTEXT}.capabilities.add[0]"),
    "context taken away": ({"securityContext": {"$patch": "delete"}},
                           f"{_SPEC}.containers[name=worker].securityContext.runAsNonRoot"),
    "context of the worker replaced": (context(**{"$patch": "replace"}), f"{_CONTEXT}.allowPrivilegeEscalation"),
    "sidecar without limits": (sidecar(), f"{_WORKER}.securityContext.allowPrivilegeEscalation"),
}  # fmt: skip
"""What only the restricted standard refuses."""

OURS: Final[dict[str, tuple[Json, str]]] = {
    "token": ({"automountServiceAccountToken": True}, f"{_SPEC}.automountServiceAccountToken"),
    "token by default": ({"automountServiceAccountToken": None}, f"{_SPEC}.automountServiceAccountToken"),
    "projected token": (
        volume(projected={"sources": [{"configMap": {"name": "c"}}, {"serviceAccountToken": {"path": "t"}}]}),
        f"{_SPEC}.volumes[0].projected.sources[1].serviceAccountToken",
    ),
    "service account": ({"serviceAccountName": "admin"}, f"{_SPEC}.serviceAccountName"),
    "service account by its old name": ({"serviceAccount": "admin"}, f"{_SPEC}.serviceAccount"),
    "system class": ({"priorityClassName": "system-node-critical"}, f"{_SPEC}.priorityClassName"),
}
"""What no standard refuses."""

ALLOWED: Final[dict[str, Json]] = {
    "nothing": {},
    "sidecar": sidecar(securityContext=RESTRICTED),
    "bind": context(capabilities={"add": ["NET_BIND_SERVICE"]}),
    "profiles": context(
        seccompProfile={"type": "Localhost", "localhostProfile": "a"},
        appArmorProfile={"type": "RuntimeDefault"},
        seLinuxOptions={"type": "container_t", "level": "s0"},
    ),
    "sysctl": whole(sysctls=[{"name": "net.ipv4.tcp_keepalive_time", "value": "60"}]),
    "another user": whole(runAsUser=2000, fsGroup=2000),
    "non-root by container": whole(runAsNonRoot=None) | context(runAsNonRoot=True),
    "claim": volume(persistentVolumeClaim={"claimName": "data"}),
    "projected": volume(projected={"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}),
    "csi": volume(csi={"driver": "d"}),
    "host port 0": worker(ports=[{"containerPort": 9410, "hostPort": 0}]),
}
"""What every standard allows."""
