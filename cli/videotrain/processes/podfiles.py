"""What a pod finds around it: environment, command line and volumes, as the kubelet would make them."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from videotrain.files import replace_file
from videotrain.processes.programs import search_path
from videotrain_api.schema import Json
from videotrain_api.vocabulary import ENV_POD_ROOT

Lookup = Callable[[str, str], Json | None]
"""(kind, name) to the object in the pod's namespace, or None."""

INHERITED: Final = ("HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_DEVICE_ORDER")
"""Environment that pods take over; everything else must be in the pod spec, as in a cluster."""
_log = logging.getLogger(__name__)
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_SUBSCRIPT = re.compile(r"^metadata\.(annotations|labels)\['([^']+)'\]$")


class ContainerConfigError(Exception):
    """The container cannot be made yet or ever: something that the pod spec refers to is missing or not supported."""


def container_of(pod: Json) -> Json:
    """The pod's only container.

    Raises:
        ContainerConfigError: it has several.
    """
    containers = pod["spec"]["containers"]
    if len(containers) != 1:
        names = ", ".join(container["name"] for container in containers)
        raise ContainerConfigError(f"spec.containers: {names}: a process node runs exactly one container per pod")
    return dict(containers[0])


def command_line(container: Json, env: Mapping[str, str]) -> list[str]:
    """Command and arguments with $(NAME) replaced.

    Raises:
        ContainerConfigError: there is no command; images are not run here.
    """
    if not container.get("command"):
        name = container["name"]
        raise ContainerConfigError(f"container {name!r}: command: required on a process node, which runs no images")
    words = [*container["command"], *container.get("args", [])]
    return [expand(word, env) for word in words]


def demand(pod: Json, resource: str) -> int:
    """How much of an extended resource a pod's containers ask for."""
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"]]
    return sum(int(limit.get(resource, 0)) for limit in limits)


def environment(pod: Json, root: Path, lookup: Lookup, of_node: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the pod's only container; for the arguments see `container_environment`.

    Raises:
        ContainerConfigError: a Secret, ConfigMap, key or field that it refers to does not exist.
    """
    return container_environment(container_of(pod), pod, root, lookup, of_node)


def container_environment(
    container: Json, pod: Json, root: Path, lookup: Lookup, of_node: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of one container.

    Args:
        container: the container.
        pod: its pod, for the downward API.
        root: where the container's files are.
        lookup: finds Secrets and ConfigMaps.
        of_node: what the node gives to every container; the pod's own entries win.

    Raises:
        ContainerConfigError: a Secret, ConfigMap, key or field that it refers to does not exist.
    """
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env["PATH"] = search_path()
    # Several worker processes share the machine's cores; one thread each is what a core per worker gives.
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env |= of_node
    for source in container.get("envFrom", []):
        env |= _all_keys(source, lookup)
    for item in container.get("env", []):
        value = _value(item, pod, lookup)
        if value is not None:
            env[item["name"]] = expand(value, env)
    return env | {ENV_POD_ROOT: str(root)}


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace $(NAME) by its value; $$ is a dollar sign, and an unknown name stays as it is."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def field_value(pod: Json, path: str) -> str:
    """The value of a fieldRef such as `metadata.name`, `status.podIP` or `metadata.annotations['a/b']`.

    Raises:
        ContainerConfigError: the field is not one that the downward API offers.
    """
    subscript = _SUBSCRIPT.match(path)
    if subscript:
        return str(pod["metadata"].get(subscript[1], {}).get(subscript[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = pod["metadata"].get(path.removeprefix("metadata."), {})
        return "\n".join(f"{name}={json.dumps(value)}" for name, value in sorted(pairs.items()))
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": pod["status"].get("podIP", ""),
        "status.podIPs": ",".join(item["ip"] for item in pod["status"].get("podIPs", [])),
        "status.hostIP": pod["status"].get("hostIP", ""),
    }
    if path not in known:
        raise ContainerConfigError(f"fieldPath {path!r}: allowed are {', '.join(known)} and labels or annotations")
    return str(known[path])


def write_volumes(pod: Json, root: Path, lookup: Lookup) -> None:
    """Make the files of all mounted volumes below the pod's root; rewritten files change atomically.

    Raises:
        ContainerConfigError: a volume's source is missing or of a type that has no meaning here.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    for mount in container_of(pod).get("volumeMounts", []):
        name = mount["name"]
        if name not in volumes:
            raise ContainerConfigError(
                f"volumeMounts: {name!r} is not in spec.volumes ({', '.join(volumes) or 'none'})"
            )
        folder = root / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in _volume_files(volumes[name], pod, lookup):
            refresh_file(folder / path, content, secret=_has_secrets(volumes[name]))


def refresh_volumes(pod: Json, root: Path, lookup: Lookup) -> None:
    """Bring the files of a running pod up to date; as a kubelet does, leave those whose source is gone as they are."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", []) if "emptyDir" not in volume}
    for mount in container_of(pod).get("volumeMounts", []):
        volume = volumes.get(mount["name"])
        try:
            files = list(_volume_files(volume, pod, lookup)) if volume is not None else []
        except ContainerConfigError as error:
            _log.warning("volume %s of pod %s stays as it is: %s", mount["name"], pod["metadata"]["name"], error)
            continue
        for path, content in files:
            refresh_file(root / mount["mountPath"].lstrip("/") / path, content, secret=_has_secrets(volume or {}))


def _has_secrets(volume: Json) -> bool:
    return "secret" in volume or "projected" in volume


def _volume_files(volume: Json, pod: Json, lookup: Lookup) -> Iterator[tuple[str, bytes]]:
    for part in volume["projected"].get("sources", []) if "projected" in volume else [volume]:
        if "downwardAPI" in part:
            yield from downward_files(part["downwardAPI"], pod)
        elif "configMap" in part:
            yield from source_files("ConfigMap", part["configMap"]["name"], part["configMap"], lookup)
        elif "secret" in part:  # whose Secret is called `name` in a projected volume
            name = part["secret"].get("secretName") or part["secret"]["name"]
            yield from source_files("Secret", name, part["secret"], lookup)
        elif "emptyDir" not in part:
            kind = next((name for name in part if name != "name"), "none")
            raise ContainerConfigError(
                f"volume {volume['name']!r}: type {kind!r} is not supported in the embedded cluster"
            )


def downward_files(source: Json, pod: Json) -> Iterator[tuple[str, bytes]]:
    """Files of a downward API volume or projection.

    Raises:
        ContainerConfigError: an item is no fieldRef, or its field is not one that the downward API offers.
    """
    for item in source.get("items", []):
        if "fieldRef" not in item:
            raise ContainerConfigError(
                f"downwardAPI item {item['path']!r}: only fieldRef is supported on process nodes"
            )
        yield item["path"], field_value(pod, item["fieldRef"]["fieldPath"]).encode()


def source_files(kind: str, name: str, source: Json, lookup: Lookup) -> Iterator[tuple[str, bytes]]:
    """Files of a ConfigMap or Secret.

    Args:
        kind: ConfigMap or Secret.
        name: its name.
        source: `items` and `optional` of the volume or projection.
        lookup: finds it.

    Raises:
        ContainerConfigError: it, or a key that is listed, does not exist.
    """
    if source.get("optional") and lookup(kind, name) is None:
        return
    yield from _items(source, _contents(_find(kind, name, lookup)))


def _items(source: Json, contents: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The files of a volume: those listed under `items`, or one per key."""
    if "items" not in source:
        yield from contents.items()
        return
    for item in source["items"]:
        if item["key"] not in contents:
            raise ContainerConfigError(
                f"volume item {item['key']!r}: the source has {', '.join(contents) or 'no keys'}"
            )
        yield item["path"], contents[item["key"]]


def refresh_file(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Give a file of a volume its content, unless it has it: a reader may look at its time to see a change."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, private=secret)


def _find(kind: str, name: str, lookup: Lookup) -> Json:
    found = lookup(kind, name)
    if found is None:
        raise ContainerConfigError(f"{kind} {name!r} does not exist")
    return found


def _contents(source: Json) -> dict[str, bytes]:
    """Keys and values of a ConfigMap or Secret."""
    contents = {key: base64.b64decode(text) for key, text in source.get("binaryData", {}).items()}
    if source["kind"] == "Secret":
        contents |= {key: base64.b64decode(text) for key, text in source.get("data", {}).items()}
        return contents | {key: text.encode() for key, text in source.get("stringData", {}).items()}
    return contents | {key: text.encode() for key, text in source.get("data", {}).items()}


def secret_value(secret: Json, key: str) -> str | None:
    """One value of a Secret, decoded; None if it has no such key."""
    value = _contents(secret).get(key)
    return value.decode() if value is not None else None


def _all_keys(source: Json, lookup: Lookup) -> dict[str, str]:
    kind = "Secret" if "secretRef" in source else "ConfigMap"
    reference = source.get("secretRef") or source["configMapRef"]
    found = lookup(kind, reference["name"])
    if found is None and reference.get("optional"):
        return {}
    contents = _contents(_find(kind, reference["name"], lookup))
    return {source.get("prefix", "") + key: value.decode() for key, value in contents.items()}


def _value(item: Json, pod: Json, lookup: Lookup) -> str | None:
    """The value of one environment entry; None if it is optional and its source is missing."""
    source = item.get("valueFrom")
    if source is None:
        return str(item.get("value", ""))
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if field in source:
            return _key_value(item["name"], source[field], kind, lookup)
    raise ContainerConfigError(f"env {item['name']}: valueFrom {', '.join(source)} is not supported here")


def _key_value(name: str, reference: Json, kind: str, lookup: Lookup) -> str | None:
    found = lookup(kind, reference["name"])
    contents = _contents(found) if found else {}
    if reference["key"] in contents:
        return contents[reference["key"]].decode()
    if reference.get("optional"):
        return None
    where = f"{kind} {reference['name']!r}" if found else f"{kind} {reference['name']!r}, which does not exist"
    raise ContainerConfigError(f"env {name}: key {reference['key']!r} of {where}: not found")
