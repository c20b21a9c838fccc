"""Config maps with bills on a server, for whoever keeps them and whoever copies them."""

from __future__ import annotations

import json
from typing import Any

from support.planner_lives import pass_seconds

from videotrain_api.billing.document import RunBill, read_bill
from videotrain_api.schema import Json
from videotrain_api.vocabulary import BILL_KEY, KIND, LABEL_BILL, LABEL_TEAM
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.manager.bills import BillKeeper, LastSeen
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash

NAMESPACE = "videotrain-system"


class Maps:
    """Config maps of a server, which refuses what a real one refuses, and of which an operator may die."""

    def __init__(self) -> None:
        self.stored: dict[str, Json] = {}
        self.writes = 0
        self.crash_at: int | None = None
        self.crash_after = False
        self.runs: list[Json] = []

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        assert (kind, namespace) == ("ConfigMap", NAMESPACE)
        if name not in self.stored:
            raise NotFound(name)
        return self.stored[name]

    async def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Json]:
        assert (kind, namespace) == ("ConfigMap", NAMESPACE)
        return [body for body in self.stored.values() if labels in body["metadata"]["labels"]]

    async def list_page(self, kind: str, namespace: str = "", **query: str) -> Json:
        if kind == "ConfigMap":
            return self._page(query["labelSelector"], int(query["limit"]), query.get("continue", ""))
        assert kind == KIND
        heads = [(run["metadata"], run) for run in self.runs]
        wanted = namespace, query["fieldSelector"]
        return {"items": [run for head, run in heads if (head["namespace"], f"metadata.name={head['name']}") == wanted]}

    def _page(self, selector: str, limit: int, after: str) -> Json:
        """Names in order; of a selector the two forms that are asked for."""
        terms = [term.partition("!=") for term in selector.split(",")]

        def fits(labels: dict[str, str]) -> bool:
            return all(labels.get(key) != value if ne else key in labels for key, ne, value in terms)

        names = sorted(name for name, body in self.stored.items() if fits(body["metadata"]["labels"]) and name > after)
        more = {"continue": names[limit - 1]} if names[limit:] else {}
        return {"items": [self.stored[name] for name in names[:limit]], "metadata": more}

    async def patch(self, kind: str, namespace: str, name: str, patch: Json, *, manager: str = "") -> Json:
        assert (kind, namespace) == ("ConfigMap", NAMESPACE) and patch.keys() == {"metadata"}
        self.before()
        body = self.stored[name]
        labels = body["metadata"]["labels"] | patch["metadata"]["labels"]
        self.stored[name] = body | {"metadata": body["metadata"] | {"labels": labels}}
        self.after()
        return self.stored[name]

    def before(self) -> None:
        """A write is asked for, here or elsewhere."""
        self.writes += 1
        if self.writes == self.crash_at and not self.crash_after:
            raise OperatorCrash

    def after(self) -> None:
        """It took effect."""
        if self.writes == self.crash_at and self.crash_after:
            raise OperatorCrash

    async def apply(self, manifest: Json, manager: str, *, force: bool = True) -> Json:
        self.before()
        head = manifest["metadata"]
        old = self.stored.get(head["name"])
        version = old["metadata"]["resourceVersion"] if old else None
        if head.get("resourceVersion") != version or (old and old["immutable"]):
            raise Conflict(head["name"])
        body = json.loads(json.dumps(manifest | {"metadata": head | {"resourceVersion": str(self.writes)}}))
        self.stored[head["name"]] = body
        self.after()
        return body

    def bill(self) -> RunBill:
        (body,) = self.stored.values()
        assert body["metadata"]["name"] == f"videotrain-bill-{body['metadata']['labels'][LABEL_BILL]}"
        return read_bill(json.loads(body["data"][BILL_KEY]))


def seen_in(cluster: SimulatedCluster) -> LastSeen:
    head = cluster.run["metadata"]
    run: dict[str, Any] = cluster.run | {"metadata": head | {"labels": {LABEL_TEAM: "vision"}}}
    return LastSeen(run, cluster.objects.get(("ConfigMap", f"{cluster.name}-ledger")))


async def live(cluster: SimulatedCluster, keeper: BillKeeper, seconds: int) -> None:
    for _ in range(seconds):
        await pass_seconds(cluster, 1)
        seen = seen_in(cluster)
        if keeper.due(seen.run):
            await keeper.keep(seen)
