"""Objects that tests make on a control plane, and take away again."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from support.processes import until

from videotrain.controlplane.api import RequestError
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.readiness import namespace_is_usable


def create_namespace(plane: ControlPlane, name: str) -> None:
    """Create a namespace and wait until pods can be created in it."""
    api = plane.api()
    api.request("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    until(lambda: namespace_is_usable(api, name), f"pods can be created in namespace {name}")


def delete_nodes(plane: ControlPlane, names: Sequence[str]) -> None:
    """Delete nodes; those that are gone already do not matter."""
    with plane.api().kept() as api:
        for name in names:
            try:
                api.request("DELETE", f"/api/v1/nodes/{name}")
            except RequestError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
