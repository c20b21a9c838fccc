"""The objects of a run of any size as the operator writes them, generation after generation, by the real planner."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.planner_builders import SIGNING_KEY, at, manifest, progress, run_of, saved, train_stage
from support.stored_sizes import go_json

from videotrain_api.records import Roster
from videotrain_api.render.network import NetworkRules
from videotrain_api.resource.status import RunStatus
from videotrain_api.schema import Json
from videotrain_api.vocabulary import FROZEN_SPEC_KEY, LEDGER_KEY, ROSTER_KEY
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.plan import plan

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "limits.md"
LONGEST_NAME = "a" * 40
OTHERS = {"Pod": "pod", "Secret": "key", "NetworkPolicy": "network policy"}
SECONDS = 600
"""Between two generations."""


@dataclass
class RunObjects:
    """A run whose first pod fails again and again, each time after a checkpoint."""

    name: str
    nodes: int
    status: RunStatus = field(default_factory=RunStatus)
    largest: dict[str, int] = field(default_factory=dict)
    """Bytes as they are stored, by what it is."""
    written: list[dict[str, int]] = field(default_factory=list)
    """By generation: bytes of each config map that was written for it."""
    generation: int = 0

    def __post_init__(self) -> None:
        train = train_stage(steps=10_000_000)
        train["train"]["parallel"] = {"microBatchesPerStep": 2 * self.nodes}
        policy: dict[str, Any] = {
            "hangSeconds": 100_000,
            "startSeconds": 100_000,
            "graceSeconds": 20,
            "sameStepLimit": 10**6,
        }
        policy["limits"] = {"application": 100_000, "infrastructure": 100_000}
        self.body = manifest(
            stages=[train],
            nodes={"min": self.nodes, "max": self.nodes},
            failurePolicy=policy,
        )
        self.body["metadata"]["name"] = self.name
        self.lives = [0] * self.nodes
        self.seen = Observed(pods=(), signing_key=SIGNING_KEY)
        self._pass(-60)

    def pod(self, index: int) -> PodView:
        """A running pod, with an address and a uid of full length."""
        since = (self.generation if self.lives[index] else 0) * SECONDS
        return PodView(
            name=f"{self.name}-w{index}",
            uid=f"{index:08x}-2222-3333-4444-{self.lives[index]:012d}",
            index=index,
            phase="Running",
            created_at=at(since - 3.123456),
            bound_at=at(since - 2.123456),
            started_at=at(since - 1.123456),
            node=f"node-{index}",
            address=f"fd00:1234:5678:9abc:def0:{index >> 16:04x}:{index & 0xFFFF:04x}:1111",
            running=True,
            gpus=2,
            price="123456.123456 USD",
        )

    def next_generation(self) -> None:
        """It starts, saves and loses its first pod, which is replaced."""
        self.written.append({})
        began = self.generation * SECONDS
        self.seen = replace(self.seen, pods=tuple(map(self.pod, range(self.nodes))))
        self._pass(began)
        assert self.status.generation == self.generation + 1, self.status.conditions
        last = self.status.generations[-1].model_copy(update={"progress": self.progress(began)})
        self.status = self.status.model_copy(update={"generations": [*self.status.generations[:-1], last]})
        gone = replace(self.seen.pods[0], phase="Failed", running=False, finished_at=at(began + 500.5), exit_code=1)
        self.seen = replace(self.seen, pods=(gone, *self.seen.pods[1:]))
        self._pass(began + 501)
        self._pass(began + 502)
        self.seen = replace(self.seen, pods=self.seen.pods[1:], departed=(gone,))
        self._pass(began + 503)
        self.seen = replace(self.seen, departed=())
        self.lives[0] += 1
        self.generation += 1

    def progress(self, began: int) -> Any:
        """What agents told of the generation."""
        points = [saved(100 * self.generation + step, began + 10 * step) for step in range(1, 9)]
        facts = {"launched_at": at(began + 1), "started_at": at(began + 2), "first_step_at": at(began + 3)}
        more = {"last_step_at": at(began + 400), "saved": points, "resumed_step": 100 * self.generation}
        return progress(self.generation + 1, 100 * self.generation + 8, **(facts | more))

    def _pass(self, seconds: float) -> None:
        run = run_of(self.body | {"status": self.status.to_wire()})
        decided = plan(run, self.seen, at(seconds), ClusterRules(network=NetworkRules()))
        for item in decided.apply:
            self._stored(item)
        self.status = decided.status
        self._note("run", self.body | {"status": self.status.to_wire()})
        self._note("status", self.status.to_wire())

    def _stored(self, item: Json) -> None:
        what = OTHERS.get(item["kind"], "configuration")
        data = item.get("data", {})
        if LEDGER_KEY in data:
            what = "ledger"
            self.seen = replace(self.seen, ledger=json.loads(data[LEDGER_KEY]), ledger_resource_version="1")
        elif ROSTER_KEY in data:
            what = "roster"
            text = data[ROSTER_KEY]
            roster = Roster.from_wire(json.loads(text)) if text else None
            self.seen = replace(self.seen, roster=roster, roster_resource_version="1")
        elif what == "network policy":
            self.seen = replace(self.seen, network_policy=item["spec"])
        elif what == "configuration":
            name = item["metadata"]["name"]
            frozen = json.loads(data[FROZEN_SPEC_KEY])
            self.seen = replace(self.seen, config_maps=frozenset({name}), frozen_spec=frozen)
        size = self._note(what, item)
        if self.written and item["kind"] == "ConfigMap":
            self.written[-1][what] = self.written[-1].get(what, 0) + size

    def _note(self, what: str, body: Json) -> int:
        size = len(go_json(body))
        self.largest[what] = max(size, self.largest.get(what, 0))
        return size


def told_on_page(name: str, table: Sequence[str]) -> list[float]:
    """The numbers that the page of limits has in a table; with `VIDEOTRAIN_WRITE_DOCS=1` this one is written there."""
    mark = f"<!-- measured: {name} -->\n"
    before, _, rest = PAGE.read_text().partition(mark)
    told, _, after = rest.partition("<!-- end -->")
    if os.environ.get("VIDEOTRAIN_WRITE_DOCS") == "1":
        told = "\n".join(table) + "\n"
        PAGE.write_text(f"{before}{mark}{told}<!-- end -->{after}")
    assert told, f"{PAGE.name} has no table {name}"
    return numbers_of(told)


def numbers_of(table: str) -> list[float]:
    """The numbers of a table, row by row."""
    return [float(text.replace(",", "")) for text in re.findall(r"\| ([\d,.]+)(?= \|)", table)]
