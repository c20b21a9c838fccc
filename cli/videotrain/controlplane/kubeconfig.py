"""Kubeconfig files: one user, one cluster, everything inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from videotrain.controlplane.pki import Pair
from videotrain.files import replace_file


def certificate_user(identity: Pair) -> dict[str, str]:
    """A user who shows a certificate."""
    return {
        "client-certificate-data": _encoded(identity.certificate.read_bytes()),
        "client-key-data": _encoded(identity.key.read_bytes()),
    }


def token_user(token: str) -> dict[str, str]:
    """A user who shows a token, such as a service account."""
    return {"token": token}


def write(path: Path, server: str, authority: Path, name: str, user: Mapping[str, str]) -> None:
    """Write a kubeconfig that only its owner may read."""
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "videotrain",
                "cluster": {"server": server, "certificate-authority-data": _encoded(authority.read_bytes())},
            }
        ],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": "videotrain", "context": {"cluster": "videotrain", "user": name}}],
        "current-context": "videotrain",
    }
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, yaml.safe_dump(content, sort_keys=False), private=True)


def move_server(path: Path, server: str) -> None:
    """Let a kubeconfig point to another URL of the same API server."""
    content = yaml.safe_load(path.read_text())
    if content["clusters"][0]["cluster"]["server"] != server:
        content["clusters"][0]["cluster"]["server"] = server
        replace_file(path, yaml.safe_dump(content, sort_keys=False), private=True)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
