"""A control plane on this machine: etcd, API server, controller manager, scheduler and, if wanted, fake nodes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from videotrain.controlplane import commands, kubeconfig
from videotrain.controlplane.api import Api
from videotrain.controlplane.build import binary
from videotrain.controlplane.commands import API_SERVER, CONTROLLER_MANAGER, ETCD, HOST, KWOK, SCHEDULER, Layout
from videotrain.controlplane.component import Component
from videotrain.controlplane.errors import ComponentEnded, ControlPlaneError
from videotrain.controlplane.kwok import prepare as prepare_kwok
from videotrain.controlplane.pki import Authority, Pair
from videotrain.controlplane.readiness import (
    ADMIN,
    ADMINS,
    admin_api,
    namespace_is_usable,
    readiness,
    user_stem,
)
from videotrain.controlplane.settings import Settings
from videotrain.files import replace_file
from videotrain.processes.addresses import free_ports, port_is_free
from videotrain.processes.leftovers import end_leftovers

START_SECONDS: Final = 180.0
"""For one component, on a machine that is busy with other things."""
PORT_ATTEMPTS: Final = 5
_POLL_SECONDS: Final = 0.05
_NODE_CLIENT_STEM: Final = "node-client"
_PORTS_FILE: Final = "ports.json"
_TAKEN: Final = "address already in use"
_ENVIRONMENT: Final = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
"""Components get no proxy settings, and no kubeconfig of the user."""


class ControlPlane:
    """A control plane in a directory.

    Everything it knows is in the directory: starting again there keeps the objects, users and address. Nothing of it
    outlives this Python process, whatever ends that.
    """

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        self.directory = directory.absolute()
        self.settings = settings or Settings()
        self._ports_file = self.directory / _PORTS_FILE
        self._layout: Layout | None = None
        self._stopping = threading.Event()
        self._components: dict[str, Component] = {}
        for name in (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER, *([KWOK] if self.settings.kwok else [])):
            log = self.directory / "logs" / f"{name}.log"
            self._components[name] = Component(name, self.directory / "components" / name, log)

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def components(self) -> tuple[Component, ...]:
        """Its programs, in the order in which they start."""
        return tuple(self._components.values())

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._known().server

    @property
    def layout(self) -> Layout:
        """Where everything of it is."""
        return self._known()

    @property
    def authority_file(self) -> Path:
        """Certificate of the authority that signs for the API server."""
        return self._known().authority.files.certificate

    def start(self, component: str | None = None) -> None:
        """Start what does not run, and wait until it is ready.

        Args:
            component: only this one, such as `kube-apiserver`.

        Raises:
            ControlPlaneError: a component ended or did not become ready; the message holds the end of its log.
        """
        self._stopping.clear()
        if component is not None:
            self._start_one(self._component(component))
            return
        end_leftovers(self.directory / "components")
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything. The data stay: what etcd has confirmed is with the kernel."""
        self.interrupt()
        self._kill_all()

    def interrupt(self) -> None:
        """Let a `start` that another thread waits for fail soon."""
        self._stopping.set()

    def kill(self, component: str) -> None:
        """Kill a component, as a crash does; `start` brings it back at the same address."""
        self._component(component).kill()

    def pause(self, component: str) -> None:
        """Stop a component without ending it: its connections stay open and nothing is answered."""
        self._component(component).pause()

    def resume(self, component: str) -> None:
        """Let a paused component go on."""
        self._component(component).resume()

    def check(self) -> None:
        """Raise if a component has ended by itself.

        Raises:
            ComponentEnded: one has.
        """
        for component in self.components:
            component.check()

    def kubeconfig(self, user: str = ADMIN, groups: Sequence[str] = ADMINS) -> Path:
        """A kubeconfig of a user, who is known by a certificate.

        Args:
            user: name by which RBAC knows the user.
            groups: the user's groups; `system:masters` may do everything.

        Returns:
            The file, which stays valid over restarts.
        """
        layout = self._known()
        return self._kubeconfig(layout, user, groups)

    def service_account(self, namespace: str, name: str, *, seconds: int = 86400) -> Path:
        """A kubeconfig of a service account, by a token that the API server issues for it.

        Raises:
            RequestError: there is no such service account.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        token = self.api().request("POST", path, body)["status"]["token"]
        user = f"system:serviceaccount:{namespace}:{name}"
        target = self.directory / "kubeconfigs" / f"{quote(user, safe='')}.yaml"
        kubeconfig.write(target, self.server, self.authority_file, user, kubeconfig.token_user(token))
        return target

    def api(self) -> Api:
        """Blocking requests as an administrator."""
        return admin_api(self._known())

    def install(self, manifest: Mapping[str, Any]) -> None:
        """Apply a CustomResourceDefinition and wait until the API server serves its kind.

        Raises:
            RequestError: it is refused.
        """
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{manifest['metadata']['name']}"
        spec = manifest["spec"]
        version = next(version["name"] for version in spec["versions"] if version["served"])
        collection = f"/apis/{spec['group']}/{version}/{spec['names']['plural']}"
        api = self.api()
        api.apply(path, dict(manifest))

        def served() -> bool:
            conditions = api.get(path)["status"].get("conditions") or []
            established = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
            return established and api.text("GET", collection)[0] == HTTPStatus.OK

        self._until(served, self._component(API_SERVER), "serve the new kind")

    def _kill_all(self) -> None:
        for component in reversed(self.components):
            component.kill()

    def _known(self) -> Layout:
        if self._layout is None:
            raise ControlPlaneError(f"the control plane of {self.directory} has not been started")
        return self._layout

    def _component(self, name: str) -> Component:
        if name not in self._components:
            raise ControlPlaneError(f"no component {name!r} here; there are: {', '.join(self._components)}")
        return self._components[name]

    def _start_all(self) -> None:
        for attempt in range(PORT_ATTEMPTS):
            self._layout = self._prepare(fresh_ports=attempt > 0)
            try:
                for component in self.components:
                    self._start_one(component)
            except ComponentEnded as error:
                # Between our look and its start, another program may have taken a port.
                if _TAKEN not in str(error) or attempt + 1 == PORT_ATTEMPTS:
                    raise
                self._kill_all()
            else:
                return

    def _prepare(self, *, fresh_ports: bool) -> Layout:
        self.directory.mkdir(parents=True, exist_ok=True)
        authority = Authority(self.directory / "pki")
        hosts = [HOST, "localhost", commands.SERVICE_ADDRESS, "kubernetes", "kubernetes.default"]
        hosts += ["kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        serving = authority.server("serving", hosts)
        paths: dict[str, Path] = {}
        client = authority.client(_NODE_CLIENT_STEM, commands.NODE_CLIENT, ADMINS)
        layout = Layout(self.directory, _ports(self._ports_file, fresh=fresh_ports), authority, serving, client, paths)
        for name, user in commands.USERS.items():
            if name in self._components:
                paths[name] = self._kubeconfig(layout, user, commands.GROUPS.get(name, ()))
        for path in (self.directory / "kubeconfigs").glob("*.yaml"):
            kubeconfig.move_server(path, layout.server)
        self._kubeconfig(layout, ADMIN, ADMINS)
        return layout

    def _kubeconfig(self, layout: Layout, user: str, groups: Sequence[str]) -> Path:
        stem = user_stem(user, groups)
        identity = layout.authority.client(stem, user, groups)
        path = self.directory / "kubeconfigs" / f"{stem}.yaml"
        authority = layout.authority.files.certificate
        kubeconfig.write(path, layout.server, authority, user, kubeconfig.certificate_user(identity))
        return path

    def _start_one(self, component: Component) -> None:
        layout = self._known()
        if component.name == KWOK and self.settings.kwok is not None:
            prepare_kwok(admin_api(layout), layout.directory, self.settings.kwok)
        component.start([str(binary()), component.name, *self._arguments(component.name, layout)], _ENVIRONMENT)
        self._until(readiness(component.name, layout), component, "become ready")
        if component.name == CONTROLLER_MANAGER:
            api = admin_api(layout)
            self._until(lambda: namespace_is_usable(api, "default"), component, "furnish the default namespace")

    def _arguments(self, name: str, layout: Layout) -> list[str]:
        if name == ETCD:
            return commands.etcd(layout)
        if name == KWOK:
            assert self.settings.kwok is not None
            return commands.kwok(layout, self.settings.kwok, layout.directory / "stages.yaml")
        make = {
            API_SERVER: commands.api_server,
            CONTROLLER_MANAGER: commands.controller_manager,
            SCHEDULER: commands.scheduler,
        }[name]
        return make(layout, self.settings)

    def _until(self, condition: Callable[[], bool], component: Component, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass  # nobody listens there yet
            component.check()
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"{component.name} did not {what} within {START_SECONDS:.0f} s; the end of {component.log}:\n"
                    f"{component.tail()}"
                )
            if self._stopping.wait(_POLL_SECONDS):
                raise ControlPlaneError("the control plane was stopped while it started")


def known_layout(directory: Path) -> Layout:
    """Where the control plane of a directory is, for other processes than its owner.

    Raises:
        ControlPlaneError: none was ever started there.
    """
    ports = directory / _PORTS_FILE
    if not ports.is_file():
        raise ControlPlaneError(f"no control plane was started in {directory}")
    pki = directory / "pki"
    serving = Pair(pki / "serving.crt", pki / "serving.key")
    client = Pair(pki / f"{_NODE_CLIENT_STEM}.crt", pki / f"{_NODE_CLIENT_STEM}.key")
    return Layout(directory, json.loads(ports.read_text()), Authority(pki), serving, client, {})


def _ports(path: Path, *, fresh: bool) -> dict[str, int]:
    """The ports of the last start as far as they are free, so that kubeconfigs stay valid."""
    held: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
    kept = {} if fresh else {name: port for name, port in held.items() if port_is_free(HOST, port)}
    missing = [name for name in commands.PORTS if name not in kept]
    fresh_ones = free_ports(len(missing), HOST) if missing else []
    ports = kept | dict(zip(missing, fresh_ones, strict=True))
    replace_file(path, json.dumps(ports), private=True)
    return ports
