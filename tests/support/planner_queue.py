"""A queue for the simulated cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from videotrain_operator.cluster.interface import Json

if TYPE_CHECKING:
    from support.planner_cluster import SimCluster


class SimQueue:
    """A queue that admits pod groups as Kueue 0.19 does; tests/cluster/test_kueue.py asks Kueue itself."""

    GATE = "kueue.x-k8s.io/admission"
    FINALIZER = "kueue.x-k8s.io/managed"

    def __init__(self, pods: int) -> None:
        self.pods = pods
        """Quota."""
        self.known: set[str] = set()
        self.admitted: set[str] = set()
        self.surplus: list[str] = []

    def gate(self, body: Json) -> None:
        """The webhook: a new pod waits."""
        self.known.add(body["metadata"]["name"])
        body["spec"]["schedulingGates"] = [{"name": self.GATE}]
        body["metadata"]["finalizers"] = [self.FINALIZER]

    def admit(self, cluster: SimCluster) -> None:
        """The controller: one pass over all groups."""
        groups: dict[str, list[Json]] = {}
        for body in cluster._pods():
            groups.setdefault(body["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"], []).append(body)
        self.admitted &= set(groups)
        counts = {name: self._count(bodies) for name, bodies in groups.items()}
        for name in sorted(groups):
            active = [body for body in groups[name] if not self._inactive(body)]
            self.surplus += [body["metadata"]["name"] for body in active[counts[name] :]]
            used = sum(counts[other] for other in self.admitted)
            whole = len(active) == counts[name] and self._places_fit(active, counts[name])
            if name not in self.admitted and whole and used + counts[name] <= self.pods:
                self.admitted.add(name)
            for body in active if name in self.admitted else []:
                body["spec"].pop("schedulingGates", None)
            self._finalize(cluster, groups[name], counts[name])

    def preempt(self, cluster: SimCluster) -> None:
        """Every pod is ended, and new ones have to wait."""
        self.admitted.clear()
        for body in cluster._pods():
            told = {"type": "TerminationTarget", "status": "True", "reason": "StoppedByKueue", "message": "preempted"}
            body["status"].setdefault("conditions", []).append(told | {"lastTransitionTime": cluster.stamp()})
            body["metadata"].setdefault("deletionTimestamp", cluster.stamp())

    def _finalize(self, cluster: SimCluster, bodies: list[Json], count: int) -> None:
        """Pods that are over are let go once they are replaced, or when the group may end."""
        inactive = [body for body in bodies if self._inactive(body)]
        succeeded = [body for body in bodies if body["status"]["phase"] == "Succeeded"]
        final = any("kueue.x-k8s.io/retriable-in-group" in b["metadata"].get("annotations", {}) for b in bodies)
        done = len(succeeded) == count or (final and len(inactive) + len(succeeded) == len(bodies))
        for body in bodies if done else inactive[: max(0, len(bodies) - count)]:
            body["metadata"].pop("finalizers", None)
            if "deletionTimestamp" in body["metadata"]:
                cluster._remove("Pod", body["metadata"]["name"])

    def _count(self, bodies: list[Json]) -> int:
        (count,) = {body["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] for body in bodies}
        return int(count)

    def _places_fit(self, bodies: list[Json], count: int) -> bool:
        return all(int(b["metadata"]["labels"]["kueue.x-k8s.io/pod-group-pod-index"]) < count for b in bodies)

    def _inactive(self, body: Json) -> bool:
        """It needs a replacement. One that succeeded does not, and keeps its place."""
        never_ran = "deletionTimestamp" in body["metadata"] and not body["spec"].get("nodeName")
        return body["status"]["phase"] == "Failed" or never_ran
