"""A queue for the simulated cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from videotrain_operator.cluster.interface import Json

if TYPE_CHECKING:
    from support.planner_cluster import SimCluster


class SimQueue:
    """A queue that admits pod groups as Kueue does, as far as its documentation promises it."""

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
            active = [body for body in groups[name] if not self._over(body)]
            self.surplus += [body["metadata"]["name"] for body in active[counts[name] :]]
            used = sum(counts[other] for other in self.admitted)
            if name not in self.admitted and len(active) == counts[name] and used + counts[name] <= self.pods:
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
        over = [body for body in bodies if self._over(body)]
        final = any("kueue.x-k8s.io/retriable-in-group" in b["metadata"].get("annotations", {}) for b in bodies)
        done = len(over) == len(bodies) and (final or all(b["status"]["phase"] == "Succeeded" for b in over))
        free = len(over) if done else max(0, len(bodies) - count)
        for body in over[:free]:
            body["metadata"].pop("finalizers", None)
            if "deletionTimestamp" in body["metadata"]:
                cluster._remove("Pod", body["metadata"]["name"])

    def _count(self, bodies: list[Json]) -> int:
        (count,) = {body["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] for body in bodies}
        return int(count)

    def _over(self, body: Json) -> bool:
        never_ran = "deletionTimestamp" in body["metadata"] and not body["spec"].get("nodeName")
        return body["status"]["phase"] in ("Succeeded", "Failed") or never_ran
