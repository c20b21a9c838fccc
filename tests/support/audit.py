"""A control plane that writes down what some users ask of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from videotrain.controlplane.commands import API_SERVER, Layout
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.settings import Settings

Json = dict[str, Any]
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
DONE = 300
"""Statuses from here on say that nothing was done."""
UNKNOWN = 500
"""But for those from here on, which do not say it."""


class AuditedControlPlane(ControlPlane):
    """A control plane that writes down every request of the named users, before it is answered."""

    def __init__(self, directory: Path, settings: Settings | None = None, users: Sequence[str] = ()) -> None:
        super().__init__(directory, settings)
        self._users = list(users)

    @property
    def audit_log(self) -> Path:
        """One JSON object per line."""
        return self.directory / "audit.jsonl"

    def _arguments(self, name: str, layout: Layout) -> list[str]:
        flags = super()._arguments(name, layout)
        if name != API_SERVER:
            return flags
        policy = self.directory / "audit-policy.yaml"
        rules = [{"level": "Metadata", "users": self._users}, {"level": "None"}]
        head = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        policy.write_text(json.dumps(head | {"rules": rules}))
        return [*flags, f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]

    def requests(self) -> list[Json]:
        """What was written down."""
        if not self.audit_log.exists():
            return []
        lines = self.audit_log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def writes(requests: Iterable[Json]) -> list[Json]:
    """Requests that would change something, refused ones too; the election's lease does not count."""
    asked = (entry for entry in requests if entry["verb"] in WRITES and entry["stage"] == "ResponseComplete")
    return [entry for entry in asked if "objectRef" in entry and entry["objectRef"]["resource"] != "leases"]


def in_words(entry: Json) -> str:
    """One line about a request."""
    about = entry.get("objectRef") or {}
    what = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
    code = (entry.get("responseStatus") or {}).get("code")
    return f"{entry['verb']} {what} {about.get('namespace', '')}/{about.get('name', '')} -> {code}"
