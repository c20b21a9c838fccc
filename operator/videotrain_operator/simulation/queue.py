"""A queue for the simulated cluster: it admits groups of pods as Kueue does."""

from __future__ import annotations

from typing import Final, Protocol

from videotrain_api.schema import Json
from videotrain_api.vocabulary import (
    ANNOTATION_GROUP_SIZE,
    ANNOTATION_RETRIABLE,
    KUEUE,
    LABEL_GROUP_PLACE,
    LABEL_POD_GROUP,
    LABEL_QUEUE_MANAGED,
)

GATE: Final = f"{KUEUE}/admission"


class PodStore(Protocol):
    """The simulated cluster, as far as a queue sees it."""

    def pods(self) -> list[Json]:
        """Every Pod object, as it is stored; the queue writes into them."""

    def stamp(self) -> str:
        """Now, as an API server writes it."""

    def remove(self, kind: str, name: str) -> None:
        """An object goes, or is marked for deletion while it has finalizers."""


class PodGroupQueue:
    """Admits a pod group when it is complete and its quota is free, as Kueue 0.19 does.

    Quota is counted in pods, and there is one queue. tests/cluster/test_kueue.py asks Kueue itself.
    """

    def __init__(self, pods: int) -> None:
        self.pods = pods
        """Quota."""
        self.known: set[str] = set()
        """Names of pods that were made to wait."""
        self.admitted: set[str] = set()
        """Names of groups."""
        self.surplus: list[str] = []
        """Pods beyond the number that their group announced: Kueue would delete them."""

    def gate(self, body: Json) -> None:
        """What the webhook does to a new pod: it waits."""
        self.known.add(body["metadata"]["name"])
        body["spec"]["schedulingGates"] = [{"name": GATE}]
        body["metadata"]["finalizers"] = [LABEL_QUEUE_MANAGED]
        body["metadata"].setdefault("labels", {})[LABEL_QUEUE_MANAGED] = "true"

    def admit(self, cluster: PodStore) -> None:
        """What the controller does: one pass over all groups."""
        groups: dict[str, list[Json]] = {}
        for body in cluster.pods():
            groups.setdefault(body["metadata"]["labels"][LABEL_POD_GROUP], []).append(body)
        self.admitted &= set(groups)
        counts = {name: _announced(bodies) for name, bodies in groups.items()}
        for name in sorted(groups):
            active = [body for body in groups[name] if not _needs_replacement(body)]
            self.surplus += [body["metadata"]["name"] for body in active[counts[name] :]]
            used = sum(counts[other] for other in self.admitted)
            whole = len(active) == counts[name] and all(_place(body) < counts[name] for body in active)
            if name not in self.admitted and whole and used + counts[name] <= self.pods:
                self.admitted.add(name)
            for body in active if name in self.admitted else []:
                body["spec"].pop("schedulingGates", None)
            self._finalize(cluster, groups[name], counts[name])

    def preempt(self, cluster: PodStore) -> None:
        """Every pod is ended, and new ones have to wait."""
        self.admitted.clear()
        for body in cluster.pods():
            told = {"type": "TerminationTarget", "status": "True", "reason": "StoppedByKueue", "message": "preempted"}
            body["status"].setdefault("conditions", []).append(told | {"lastTransitionTime": cluster.stamp()})
            body["metadata"].setdefault("deletionTimestamp", cluster.stamp())

    def _finalize(self, cluster: PodStore, bodies: list[Json], count: int) -> None:
        """Pods that are over are let go once they are replaced, or when the group may end."""
        inactive = [body for body in bodies if _needs_replacement(body)]
        succeeded = [body for body in bodies if body["status"]["phase"] == "Succeeded"]
        final = any(ANNOTATION_RETRIABLE in b["metadata"].get("annotations", {}) for b in bodies)
        done = len(succeeded) == count or (final and len(inactive) + len(succeeded) == len(bodies))
        for body in bodies if done else inactive[: max(0, len(bodies) - count)]:
            body["metadata"].pop("finalizers", None)
            if "deletionTimestamp" in body["metadata"]:
                cluster.remove("Pod", body["metadata"]["name"])


def _announced(bodies: list[Json]) -> int:
    (count,) = {body["metadata"]["annotations"][ANNOTATION_GROUP_SIZE] for body in bodies}
    return int(count)


def _place(body: Json) -> int:
    return int(body["metadata"]["labels"][LABEL_GROUP_PLACE])


def _needs_replacement(body: Json) -> bool:
    """It counts no more. A pod that succeeded does, and keeps its place."""
    never_ran = "deletionTimestamp" in body["metadata"] and not body["spec"].get("nodeName")
    return body["status"]["phase"] == "Failed" or never_ran
