"""The pod template: a strategic merge patch that must leave the worker pod working.

Only what the merge and the operator rely on is looked at; whether the rest is a PodSpec is for the API server to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from videotrain_api.resource.pool import ENV_ADVICE, PodTemplate, reserved_env
from videotrain_api.schema import Problem
from videotrain_api.vocabulary import CONTAINER_WORKER, GROUP, VOLUMES, VOLUMES_FIXED

MERGE_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Lists whose items merge, and by which field: the patchMergeKey of the Kubernetes API."""
LABELS_FIXED: Final = tuple(f"app.kubernetes.io/{name}" for name in ("name", "instance", "managed-by", "component"))
"""Labels of a worker pod outside of the operator's own group that no template changes."""
APPENDED: Final = ("tolerations",)
"""Lists to which a patch adds. Kubernetes would replace them, and with them the tolerations for lost nodes."""
PATCH: Final = "$patch"
RETAIN: Final = "$retainKeys"
_DIRECTIVES: Final = ("delete", "replace", "merge")
_RENDERED: Final = {
    "restartPolicy": "the operator restarts workers, the kubelet must not",
    "hostname": "it is the pod's name",
    "subdomain": "workers find each other by address, and a run has no service",
    "nodeName": "it would go past the scheduler; use spec.pool.nodeSelector",
    "terminationGracePeriodSeconds": "set spec.failurePolicy.graceSeconds",
    "ephemeralContainers": "they cannot be part of a new pod",
}
_AFFINITIES: Final = {
    "nodeAffinity": None,
    "podAffinity": "preferredDuringSchedulingIgnoredDuringExecution",
    "podAntiAffinity": "requiredDuringSchedulingIgnoredDuringExecution",
}
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"


def check_template(path: str, template: PodTemplate) -> Iterator[Problem]:
    """Everything wrong with a template; the merge cannot fail on one without problems."""
    for field in ("labels", "annotations"):
        for key in getattr(template.metadata, field):
            if key.startswith(f"{GROUP}/"):
                yield Problem(f"{path}.metadata.{field}.{key}", "(set)", f"names below {GROUP}/ are the operator's")
    for key in LABELS_FIXED:
        if key in template.metadata.labels:
            allowed = "set by the operator, whose policies go by it; choose another name"
            yield Problem(f"{path}.metadata.labels.{key}", template.metadata.labels[key], allowed)
    shape = list(_shape(f"{path}.spec", template.spec))
    yield from shape
    if not shape:
        yield from _spec(f"{path}.spec", template.spec)


def _shape(path: str, value: Any) -> Iterator[Problem]:
    """Directives that exist, and merged lists that can be merged."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key.startswith("$"):
                yield from _directive(f"{path}.{key}", key, below)
            elif key in MERGE_KEYS and below is not None:
                yield from _merged_list(f"{path}.{key}", below, MERGE_KEYS[key])
            elif key in APPENDED and not _all_mappings(below):
                yield Problem(f"{path}.{key}", below, "must be a list of mappings")
            else:
                yield from _shape(f"{path}.{key}", below)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _shape(f"{path}[{number}]", item)


def _directive(path: str, key: str, value: Any) -> Iterator[Problem]:
    if key == RETAIN:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            yield Problem(path, value, "must be a list of field names")
    elif key != PATCH:
        yield Problem(path, value, f"unknown directive; allowed: {PATCH}, {RETAIN}")
    elif value not in _DIRECTIVES:
        yield Problem(path, value, f"allowed: {', '.join(_DIRECTIVES)}")


def _merged_list(path: str, items: Any, key: str) -> Iterator[Problem]:
    if not _all_mappings(items):
        yield Problem(path, items, "must be a list of mappings")
        return
    seen: set[str | int] = set()
    for number, item in enumerate(items):
        place = f"{path}[{number}]"
        if item == {PATCH: "replace"}:
            continue
        name = item.get(key)
        if not isinstance(name, str | int):
            yield Problem(f"{place}.{key}", name, f"items of this list are merged by {key}, so it is required")
        elif name in seen:
            yield Problem(f"{place}.{key}", name, "appears twice")
        else:
            seen.add(name)
        yield from _shape(place, item)


def _spec(path: str, spec: dict[str, Any]) -> Iterator[Problem]:
    if PATCH in spec:
        yield Problem(f"{path}.{PATCH}", spec[PATCH], "the pod as a whole cannot be replaced or deleted")
    for field, why in _RENDERED.items():
        if field in spec:
            yield Problem(f"{path}.{field}", spec[field], f"set by the operator: {why}")
    yield from _kept(path, spec, "containers", (CONTAINER_WORKER,))
    yield from _kept(path, spec, "volumes", VOLUMES)
    for number, volume in enumerate(spec.get("volumes") or []):
        if volume.get("name") in VOLUMES_FIXED:
            yield Problem(f"{path}.volumes[{number}]", volume["name"], "belongs to the operator; choose another name")
    for number, container in enumerate(spec.get("containers") or []):
        if container.get("name") == CONTAINER_WORKER:
            yield from _worker(f"{path}.containers[{number}]", container)
    yield from _affinity(f"{path}.affinity", spec.get("affinity"))


def _kept(path: str, spec: dict[str, Any], field: str, kept: tuple[str, ...]) -> Iterator[Problem]:
    """The list cannot be emptied, and items of the operator cannot be taken out or replaced as a whole."""
    if field in spec and spec[field] is None:
        yield Problem(f"{path}.{field}", None, f"cannot be removed: it holds {', '.join(kept)}")
    for number, item in enumerate(spec.get(field) or []):
        if item.get(PATCH, "merge") != "merge" and item.get("name", kept[0]) in kept:
            allowed = f"{', '.join(kept)} cannot be removed or replaced as a whole; change single fields"
            yield Problem(f"{path}.{field}[{number}].{PATCH}", item[PATCH], allowed)


def _worker(path: str, container: dict[str, Any]) -> Iterator[Problem]:
    if "env" in container and container["env"] is None:
        yield Problem(f"{path}.env", None, "cannot be removed: the agent reads it")
    for number, item in enumerate(container.get("env") or []):
        secret = str(item.get("name")).startswith("AWS_") and "valueFrom" in item
        if item.get(PATCH) == "replace" or (reserved_env(str(item.get("name"))) and not secret):
            yield Problem(f"{path}.env[{number}].name", item.get("name"), f"reserved; {ENV_ADVICE}")
    for field in ("volumeMounts", "ports"):
        if field in container and container[field] is None:
            yield Problem(f"{path}.{field}", None, "cannot be removed: the agent needs it")
        for number, item in enumerate(container.get(field) or []):
            if item.get(PATCH, "merge") != "merge":
                yield Problem(f"{path}.{field}[{number}].{PATCH}", item[PATCH], "the agent needs what is mounted here")
    for field, below in ((f, container.get(f)) for f in ("resources", "securityContext")):
        if field in container and not isinstance(below, dict):
            yield Problem(f"{path}.{field}", below, "must be a mapping")


def _affinity(path: str, affinity: Any) -> Iterator[Problem]:
    """The operator adds its own terms to these, so they must be what they are called."""
    if affinity is None:
        return
    if not isinstance(affinity, dict):
        yield Problem(path, affinity, "must be a mapping")
        return
    for kind, terms in _AFFINITIES.items():
        below = affinity.get(kind)
        if below is not None and not isinstance(below, dict):
            yield Problem(f"{path}.{kind}", below, "must be a mapping")
        elif below and terms and not _all_mappings(below.get(terms) or []):
            yield Problem(f"{path}.{kind}.{terms}", below[terms], "must be a list of mappings")
    node = affinity.get("nodeAffinity")
    required = node.get(_REQUIRED) if isinstance(node, dict) else None
    if required is not None:
        terms = required.get("nodeSelectorTerms") if isinstance(required, dict) else None
        if not terms or not _all_mappings(terms):
            yield Problem(f"{path}.nodeAffinity.{_REQUIRED}", required, "must hold a list of nodeSelectorTerms")


def _all_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
