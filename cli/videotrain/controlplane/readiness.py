"""Whether a component serves, asked over its own address."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Sequence
from hashlib import sha256
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from videotrain.controlplane.api import Api
from videotrain.controlplane.commands import CONTROLLER_MANAGER, ETCD, HOST, KWOK, Layout
from videotrain.controlplane.errors import RequestError
from videotrain.controlplane.pki import Pair

ADMIN: Final = "admin"
ADMINS: Final = ("system:masters",)
_SECONDS: Final = 5.0


def readiness(name: str, layout: Layout) -> Callable[[], bool]:
    """A question that may be asked again and again; it raises OSError while nobody listens."""
    if name in (ETCD, KWOK):
        return lambda: _answers(f"http://{HOST}:{layout.ports[name]}/readyz")
    path = "/healthz" if name == CONTROLLER_MANAGER else "/readyz"  # the former has no /readyz
    own = admin_api(layout, f"https://{HOST}:{layout.ports[name]}")
    return lambda: own.text("GET", path)[0] == HTTPStatus.OK


def namespace_is_usable(api: Api, namespace: str) -> bool:
    """Pods are refused until the namespace has its service account, and wait for the root certificate."""
    try:
        api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
        api.get(f"/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt")
    except RequestError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def admin_api(layout: Layout, server: str | None = None) -> Api:
    """Requests as an administrator, to the API server or to another component that serves."""
    stem = user_stem(ADMIN, ADMINS)
    identity = Pair(layout.authority.folder / f"{stem}.crt", layout.authority.folder / f"{stem}.key")
    return Api(server or layout.server, str(layout.authority.files.certificate), identity)


def user_stem(user: str, groups: Sequence[str]) -> str:
    """File name of a user; the same user with other groups is another one."""
    name = quote(user, safe="")
    if not groups or (user, tuple(groups)) == (ADMIN, ADMINS):
        return name
    return f"{name}-{sha256(','.join(sorted(groups)).encode()).hexdigest()[:8]}"


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=_SECONDS) as response:  # noqa: S310 - an address of our own
        return bool(response.status == HTTPStatus.OK)
