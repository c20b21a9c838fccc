"""Who wrote what: the API server's audit log.

Only writes are logged, at level Metadata, once they are answered. The log names the user, so the controllers of the
controller manager are told apart by their service accounts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}
FLAGS: Final = (
    "--audit-log-mode=batch",
    "--audit-log-batch-max-wait=1s",
    "--audit-log-batch-buffer-size=200000",
    "--audit-log-maxsize=4096",
)
"""Batches cost less than the default, and the buffer is large enough to drop nothing."""
SETTLE_SECONDS: Final = 2.0
"""After so long a write is in the file."""
DRIVERS: Final = frozenset({"driver", "kwok"})
"""They play users and kubelets; what they write is not the cluster's."""


@dataclass(frozen=True)
class Write:
    """One write request."""

    at: datetime
    who: str
    verb: str
    resource: str
    """With its subresource, such as `pods/binding`."""
    namespace: str
    name: str
    code: int


def parse(line: str | bytes) -> Write:
    """One line of the log."""
    event: dict[str, Any] = json.loads(line)
    target = event.get("objectRef") or {}
    resource, below = target.get("resource", event.get("requestURI", "")), target.get("subresource")
    return Write(
        at=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        who=component(event["user"].get("username", "")),
        verb=event["verb"],
        resource=f"{resource}/{below}" if below else resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=int((event.get("responseStatus") or {}).get("code", 0)),
    )


def component(user: str) -> str:
    """Short name of a user: `system:serviceaccount:kube-system:job-controller` is `job-controller`."""
    return user.rpartition(":")[2].removeprefix("kube-")


def read(path: Path, begin: datetime, end: datetime) -> Iterator[Write]:
    """Writes that the API server received between two times."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):  # the last one may still be in the making
                write = parse(line)
                if begin <= write.at < end:
                    yield write


def tally(writes: Iterable[Write]) -> dict[str, Any]:
    """Writes by component, with lease writes apart (they come by the clock, whatever is done) and refusals named."""
    by_who: Counter[str] = Counter()
    leases: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for write in writes:
        if write.resource == "leases":
            leases[write.who] += 1
            continue
        by_who[write.who] += 1
        kinds[f"{write.who} {write.verb} {write.resource}"] += 1
        if write.code >= 400:
            refused[f"{write.who} {write.verb} {write.resource} {write.code}"] += 1
    return {"byWho": by_who, "leases": leases, "kinds": kinds, "refused": refused}


def cluster_total(by_who: dict[str, int]) -> int:
    """Writes of the cluster itself: all but those of KWOK and of the driver."""
    return sum(count for who, count in by_who.items() if who not in DRIVERS)
