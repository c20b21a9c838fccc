"""Volumes of a pod beside a real API server: directories that containers see by symbolic links at their mount paths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from videotrain.clock import parse_time
from videotrain.processes.podfiles import ContainerConfigError, Lookup, downward_files, refresh_file, source_files
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import KubeClient

TOKEN_SECONDS: Final = 3600
"""Life of a service account token if the volume does not say."""
RENEW_AT: Final = 0.8
"""Part of a token's life after which it is replaced, as a kubelet does."""
_DIRECTORIES: Final = ("emptyDir", "persistentVolumeClaim")
_FILES: Final = ("configMap", "secret", "downwardAPI", "projected")


class PodVolumes:
    """The volumes of one pod."""

    def __init__(self, client: KubeClient, root: Path, claims: Path) -> None:
        """Nothing is made yet.

        Args:
            client: reads ConfigMaps and Secrets, and asks for tokens.
            root: the pod's directory.
            claims: directory of all persistent volume claims.
        """
        self._client = client
        self._folder = root / ".volumes"
        self._claims = claims
        self._tokens: dict[tuple[str, int], tuple[str, datetime]] = {}

    async def lookup(self, pod: Json) -> Lookup:
        """The ConfigMaps and Secrets that the pod refers to, as they are now."""
        found: dict[tuple[str, str], Json] = {}
        for kind, name in sorted(set(_references(pod))):
            try:
                found[kind, name] = await self._client.get(kind, pod["metadata"]["namespace"], name) | {"kind": kind}
            except NotFound:
                continue  # the reader knows whether it may be missing
        return lambda kind, name: found.get((kind, name))

    async def refresh(self, pod: Json, lookup: Lookup) -> None:
        """Make the volumes, or bring their files up to date.

        Raises:
            ContainerConfigError: a source is missing or of a type that has no meaning here.
        """
        for volume in pod["spec"].get("volumes", []):
            self._require_known(volume)
            folder = self._folder / volume["name"]
            if "persistentVolumeClaim" in volume:
                self._link_claim(folder, pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if "emptyDir" not in volume:
                secret = "secret" in volume or "projected" in volume
                _write(folder, await self._files(volume, pod, lookup), secret)

    def refresh_downward(self, pod: Json) -> None:
        """Bring the files that show the pod's own fields up to date."""
        for volume in pod["spec"].get("volumes", []):
            folder = self._folder / volume["name"]
            projected = volume.get("projected", {}).get("sources", [])
            sources = [item["downwardAPI"] for item in [volume, *projected] if "downwardAPI" in item]
            for source in sources if folder.is_dir() else ():
                for path, content in downward_files(source, pod):
                    refresh_file(folder / path, content)

    def mount(self, container: Json, pod: Json, at: Path) -> None:
        """Let a container find its volumes below its root.

        Raises:
            ContainerConfigError: a mount names no volume.
        """
        names = [volume["name"] for volume in pod["spec"].get("volumes", [])]
        mounts = container.get("volumeMounts", [])
        for mount in sorted(mounts, key=lambda mount: str(mount["mountPath"]).count("/")):
            if mount["name"] not in names:
                raise ContainerConfigError(
                    f"volumeMounts: {mount['name']!r} is not in spec.volumes: {', '.join(names)}"
                )
            target = self._folder / mount["name"] / mount.get("subPath", "")
            if mount.get("subPath") and not target.exists():
                target.mkdir(parents=True)
            _link(at / str(mount["mountPath"]).strip("/"), target)

    def _require_known(self, volume: Json) -> None:
        kind = next((name for name in volume if name != "name"), "none")
        if kind not in _DIRECTORIES + _FILES:
            raise ContainerConfigError(
                f"volume {volume['name']!r}: type {kind!r} is refused on a process node, which shares the machine's "
                f"files; use one of {', '.join(_DIRECTORIES + _FILES)}"
            )

    def _link_claim(self, folder: Path, namespace: str, claim: str) -> None:
        target = self._claims / namespace / claim
        target.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _link(folder, target)

    async def _files(self, volume: Json, pod: Json, lookup: Lookup) -> dict[str, bytes]:
        if "projected" not in volume:
            return dict(_plain_files(volume, pod, lookup))
        files: dict[str, bytes] = {}
        for source in volume["projected"].get("sources", []):
            if "serviceAccountToken" in source:
                wanted = source["serviceAccountToken"]
                files[wanted["path"]] = (await self._token(pod, wanted)).encode()
            else:
                files |= dict(_plain_files(source, pod, lookup))
        return files

    async def _token(self, pod: Json, wanted: Json) -> str:
        """A token of the pod's service account, renewed in time."""
        audience, seconds = wanted.get("audience", ""), int(wanted.get("expirationSeconds", TOKEN_SECONDS))
        held = self._tokens.get((audience, seconds))
        if held is not None and datetime.now(UTC) < held[1]:
            return held[0]
        head, account = pod["metadata"], pod["spec"].get("serviceAccountName", "default")
        bound = {"kind": "Pod", "apiVersion": "v1", "name": head["name"], "uid": head["uid"]}
        spec: Json = {"expirationSeconds": seconds, "boundObjectRef": bound}
        spec |= {"audiences": [audience]} if audience else {}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            made = await self._client.create_subresource("ServiceAccount", head["namespace"], account, "token", body)
        except NotFound as error:
            raise ContainerConfigError(f"serviceAccountName {account!r}: no token: {error}") from None
        status, asked_at = made["status"], datetime.now(UTC)
        renew_at = asked_at + (parse_time(status["expirationTimestamp"]) - asked_at) * RENEW_AT
        self._tokens[audience, seconds] = status["token"], renew_at
        return str(status["token"])


def _plain_files(volume: Json, pod: Json, lookup: Lookup) -> Iterator[tuple[str, bytes]]:
    """Files of a volume or of a part of a projected one, whose Secret is called `name` there."""
    if "downwardAPI" in volume:
        yield from downward_files(volume["downwardAPI"], pod)
    elif "configMap" in volume:
        yield from source_files("ConfigMap", volume["configMap"]["name"], volume["configMap"], lookup)
    elif "secret" in volume:
        name = volume["secret"].get("secretName") or volume["secret"]["name"]
        yield from source_files("Secret", name, volume["secret"], lookup)
    else:
        raise ContainerConfigError(f"projected volume: source {', '.join(volume)} is not supported on process nodes")


def _references(pod: Json) -> Iterator[tuple[str, str]]:
    """Every (kind, name) of a ConfigMap or Secret in the pod's spec."""
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        origins = [item.get("valueFrom", {}) for item in container.get("env", [])]
        for origin in [*container.get("envFrom", []), *origins]:
            for field, kind in _REFERENCES.items():
                if field in origin:
                    yield kind, origin[field]["name"]
    for volume in pod["spec"].get("volumes", []):
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName") or source["secret"]["name"]


_REFERENCES: Final = {
    "secretKeyRef": "Secret",
    "secretRef": "Secret",
    "configMapKeyRef": "ConfigMap",
    "configMapRef": "ConfigMap",
}


def _write(folder: Path, files: dict[str, bytes], secret: bool) -> None:
    for path, content in files.items():
        refresh_file(folder / path, content, secret=secret)
    kept = {folder / path for path in files}
    for found in [found for found in folder.rglob("*") if found.is_file() and found not in kept]:
        found.unlink()  # its key was removed


def _link(path: Path, target: Path) -> None:
    """Make `path` lead to `target`, whatever an earlier container left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        if path.readlink() == target:
            return
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)
