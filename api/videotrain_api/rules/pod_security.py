"""What a worker pod may be: the Pod Security Standards of Kubernetes, and that it holds no credentials of the cluster.

The standards are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/ as of Kubernetes 1.34,
for pods of Linux without exemptions. A field of a wrong type is for the API server to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

PodPolicy = Literal["baseline", "restricted", "any"]
"""The standard that worker pods keep to; `any` leaves pods to the API server."""
DEFAULT_POD_POLICY: Final = "restricted"

Path = tuple[str | int, ...]
"""Fields and places in lists."""
_UNSET: Final = (None, "")
_CONTAINERS: Final = ("initContainers", "containers")
_BASELINE_CAPABILITIES: Final = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
_SELINUX_TYPES: Final = ("container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_SYSCTLS: Final = (
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
)  # fmt: skip
_PROFILES: Final = ("RuntimeDefault", "Localhost")
_APPARMOR_ANNOTATION: Final = "container.apparmor.security.beta.kubernetes.io/"
_VOLUMES: Final = (
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
)  # fmt: skip
_PROBES: Final = (("livenessProbe",), ("readinessProbe",), ("startupProbe",), ("lifecycle", "postStart"),
                  ("lifecycle", "preStop"))  # fmt: skip
_CREDENTIALS: Final = ("serviceAccountToken", "podCertificate")
_SYSTEM_CLASS: Final = "system-"


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A field of a pod that a policy does not allow."""

    path: Path
    """From the pod, such as `("spec", "containers", 0, "securityContext", "privileged")`."""
    value: Any
    allowed: str
    looser: PodPolicy
    """The strictest policy that allows it."""


def breaches(pod: dict[str, Any], policy: PodPolicy) -> list[Breach]:
    """Every field of a pod that a policy does not allow."""
    if policy == "any":
        return []
    found = [Breach(path=p, value=v, allowed=a, looser="any") for p, v, a in _baseline(pod)]
    if policy == "restricted":
        found += [Breach(path=p, value=v, allowed=a, looser="baseline") for p, v, a in _restricted(pod["spec"])]
    # What both standards refuse needs what the looser one needs.
    return list({breach.path: breach for breach in reversed(found)}.values())[::-1]


_Found = Iterator[tuple[Path, Any, str]]


def _baseline(pod: dict[str, Any]) -> _Found:
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field) not in (None, False):
            yield ("spec", field), spec[field], "unset or false"
    for path, context in _contexts(spec):
        yield from _any_context(path, context)
    for path, container in _containers(spec):
        yield from _container(path, container)
    for number, volume in enumerate(_items(spec.get("volumes"))):
        yield from _volume(("spec", "volumes", number), volume)
    for number, sysctl in enumerate(_items(_mapping(spec.get("securityContext")).get("sysctls"))):
        if sysctl.get("name") not in _SYSCTLS:
            path = ("spec", "securityContext", "sysctls", number, "name")
            yield path, sysctl.get("name"), ", ".join(_SYSCTLS)
    for name, value in _mapping(_mapping(pod.get("metadata")).get("annotations")).items():
        local = str(value).startswith("localhost/")
        if name.startswith(_APPARMOR_ANNOTATION) and not local and value not in (*_UNSET, "runtime/default"):
            yield ("metadata", "annotations", name), value, "runtime/default or localhost/PROFILE"
    yield from _credentials(spec)


def _credentials(spec: dict[str, Any]) -> _Found:
    """No standard asks for this: that workers cannot speak to the API server, or push the cluster's own pods aside."""
    if spec.get("automountServiceAccountToken") is not False:
        path, value = ("spec", "automountServiceAccountToken"), spec.get("automountServiceAccountToken")
        yield path, value, "false, since worker pods hold no credentials of Kubernetes"
    name = spec.get("priorityClassName")
    if isinstance(name, str) and name.startswith(_SYSTEM_CLASS):
        yield ("spec", "priorityClassName"), name, f"classes that do not begin with {_SYSTEM_CLASS}"


def _volume(path: Path, volume: dict[str, Any]) -> _Found:
    if volume.get("hostPath") is not None:
        yield (*path, "hostPath"), volume["hostPath"], "volumes of any other type"
    sources = _items(_mapping(volume.get("projected")).get("sources"))
    for number, source in enumerate(sources):
        for field in _CREDENTIALS:
            if source.get(field) is not None:
                allowed = "other sources; the identity of spec.pool.serviceAccountName is for object stores"
                yield (*path, "projected", "sources", number, field), source[field], allowed


def _any_context(path: Path, context: dict[str, Any]) -> _Found:
    """What baseline asks of the security context of a pod as of a container."""
    if _mapping(context.get("windowsOptions")).get("hostProcess") not in (None, False):
        yield (*path, "windowsOptions", "hostProcess"), context["windowsOptions"]["hostProcess"], "unset or false"
    for field in ("appArmorProfile", "seccompProfile"):
        kind = _mapping(context.get(field)).get("type")
        if kind not in (None, *_PROFILES):
            yield (*path, field, "type"), kind, f"unset, {', '.join(_PROFILES)}"
    options = _mapping(context.get("seLinuxOptions"))
    if options.get("type") not in (*_UNSET, *_SELINUX_TYPES):
        yield (*path, "seLinuxOptions", "type"), options["type"], f"unset, {', '.join(_SELINUX_TYPES)}"
    for field in ("user", "role"):
        if options.get(field) not in _UNSET:
            yield (*path, "seLinuxOptions", field), options[field], "unset"


def _container(path: Path, container: dict[str, Any]) -> _Found:
    context, at = _mapping(container.get("securityContext")), (*path, "securityContext")
    if context.get("privileged") not in (None, False):
        yield (*at, "privileged"), context["privileged"], "unset or false"
    if context.get("procMount") not in (*_UNSET, "Default"):
        yield (*at, "procMount"), context["procMount"], "unset, Default"
    for number, name in enumerate(_listed(_mapping(context.get("capabilities")).get("add"))):
        if name not in _BASELINE_CAPABILITIES:
            yield (*at, "capabilities", "add", number), name, ", ".join(_BASELINE_CAPABILITIES)
    for number, port in enumerate(_items(container.get("ports"))):
        if port.get("hostPort") not in (None, 0):
            yield (*path, "ports", number, "hostPort"), port["hostPort"], "unset"
    for fields in _PROBES:
        handler = container
        for field in fields:
            handler = _mapping(handler.get(field))
        for kind in ("httpGet", "tcpSocket"):
            if _mapping(handler.get(kind)).get("host") not in _UNSET:
                yield (*path, *fields, kind, "host"), handler[kind]["host"], "unset"


def _restricted(spec: dict[str, Any]) -> _Found:
    for number, volume in enumerate(_items(spec.get("volumes"))):
        for field, source in volume.items():
            if field != "name" and source is not None and field not in _VOLUMES:
                yield ("spec", "volumes", number, field), source, ", ".join(_VOLUMES)
    whole = _mapping(spec.get("securityContext"))
    for path, context in _contexts(spec):
        if context.get("runAsUser") == 0:
            yield (*path, "runAsUser"), 0, "any but 0"
        if context.get("runAsNonRoot") is False:
            yield (*path, "runAsNonRoot"), False, "true"
    for path, container in _containers(spec):
        at, context = (*path, "securityContext"), _mapping(container.get("securityContext"))
        if context.get("allowPrivilegeEscalation") is not False:
            yield (*at, "allowPrivilegeEscalation"), context.get("allowPrivilegeEscalation"), "false"
        if context.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield (*at, "runAsNonRoot"), context.get("runAsNonRoot"), "true, here or for the whole pod"
        profile = context.get("seccompProfile") or whole.get("seccompProfile")
        if _mapping(profile).get("type") not in _PROFILES:
            yield (*at, "seccompProfile", "type"), None, f"{', '.join(_PROFILES)}, here or for the whole pod"
        capabilities = _mapping(context.get("capabilities"))
        if "ALL" not in _listed(capabilities.get("drop")):
            yield (*at, "capabilities", "drop"), capabilities.get("drop"), "a list with ALL"
        for number, name in enumerate(_listed(capabilities.get("add"))):
            if name != "NET_BIND_SERVICE":
                yield (*at, "capabilities", "add", number), name, "NET_BIND_SERVICE"


def _contexts(spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    yield ("spec", "securityContext"), _mapping(spec.get("securityContext"))
    for path, container in _containers(spec):
        yield (*path, "securityContext"), _mapping(container.get("securityContext"))


def _containers(spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for field in _CONTAINERS:
        for number, container in enumerate(_items(spec.get(field))):
            yield ("spec", field, number), container


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _items(value: Any) -> list[dict[str, Any]]:
    return [_mapping(item) for item in _listed(value)]
