"""What the planner really decides in a written scenario, as a record for a picture.

    python docs/pictures/elasticity_story.py    # writes elasticity.json here and the table in docs/elasticity.md

The operator's own observe, plan, apply and ledger run against the simulated cluster of the tests, one pass a second at
least. Only nodes, pods and trainers are simulated. A test compares the stored record with what the planner does now.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support.planner_builders import START, manifest, train_stage
from support.planner_cluster import SimCluster
from support.planner_lives import settle
from support.planner_worlds import SimWorld

from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_operator.accounting.attribution import life_of, microseconds, pod_life

RECORD: Final = Path(__file__).with_name("elasticity.json")
PAGE: Final = Path(__file__).parents[1] / "elasticity.md"
BEGIN: Final = "<!-- written by docs/pictures/elasticity_story.py: begin -->\n"
END: Final = "<!-- end -->\n"
RECOVERED: Final = re.compile(
    r"generation (?P<generation>\d+) .*; (?P<lost>\d+) steps were lost, and it took (?P<seconds>\d+) s, "
    r"(?P<minutes>[\d.]+) GPU-minutes and (?P<cost>[\d.]+) USD"
)
NODES: Final = 4
STEPS: Final = 420
_STAGE: Final = train_stage(steps=STEPS)
_STAGE["train"]["parallel"] = {"microBatchesPerStep": 8 * NODES}
SPEC: Final[dict[str, Any]] = {
    "stages": [_STAGE],
    "nodes": {"min": 2, "max": NODES},
    "pool": {"gpusPerNode": 8, "pricePerGpuHour": "2.00"},
    "elasticity": {"waitForMaxSeconds": 20, "minGainSeconds": 15},
    "failurePolicy": {"hangSeconds": 25, "startSeconds": 120, "graceSeconds": 10},
    "checkpoint": {"everySteps": 40},
}
STORY: Final[dict[int, tuple[str, str, Callable[[SimCluster], Any]]]] = {
    65: ("node-3", "free: joins after a checkpoint", lambda c: c.nodes.update({"node-3": True})),
    170: ("node-1", "lost", lambda c: c.lose_node("node-1")),
    215: ("node-1", "back: joins after a checkpoint", lambda c: c.nodes.update({"node-1": True})),
    300: ("node-2", "cordoned: workers save first", lambda c: c.draining.add("node-2")),
    345: ("", "steps stand still on all nodes", lambda c: c.hang()),
    575: ("node-2", "back: growing would not pay", lambda c: c.draining.discard("node-2")),
}
"""By second: the node that it happens to, what happens, and the deed."""


class StoryCluster(SimCluster):
    """A simulated cluster whose worlds start in eight seconds and make a step a second with all nodes."""

    START_SECONDS = 8

    def __init__(self) -> None:
        super().__init__(manifest(**SPEC), nodes=NODES, every_steps=40)
        self.nodes["node-3"] = False
        self.credit: dict[int, float] = {}

    def _train(self, world: SimWorld) -> None:
        number, members = world.roster.generation, world.roster.members
        pods = [self.objects.get(("Pod", member.pod)) for member in members]
        if world.started and all(pod is not None and self._hosts(pod, world) for pod in pods):
            self.credit[number] = self.credit.get(number, 0.0) + len(members) / NODES
            if self.credit[number] < 1.0:
                return
            self.credit[number] -= 1.0
        super()._train(world)


@dataclass
class Teller:
    """Runs the scenario and notes what can be seen of it."""

    cluster: StoryCluster = field(default_factory=StoryCluster)
    status: RunStatus = field(default_factory=RunStatus)
    events: list[dict[str, Any]] = field(default_factory=list)
    steps: list[list[Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Node by pod uid."""

    async def run(self) -> None:
        """Second after second, until the run is complete and its pods are gone."""
        second = 0
        while self.status.phase != "Succeeded" or self._pods():
            if second in STORY:
                STORY[second][2](self.cluster)
            await self._look(second)
            self.cluster.tick()
            second += 1
            assert second < 2 * STEPS + 200, "the run does not end"
        await self._look(second)

    async def _look(self, second: int) -> None:
        told = len(self.cluster.events)
        self.status = (await settle(self.cluster)).plan.status
        self.events += [{"at": second, "reason": r, "message": m} for r, m in self.cluster.events[told:]]
        for pod in self._pods():
            self.places[pod["metadata"]["uid"]] = pod["spec"].get("nodeName", "")
        last = self.status.generations[-1] if self.status.generations else None
        facts = last.progress if last is not None and last.end_cause is None else None
        self.steps.append([second, facts.step if facts is not None and facts.started_at else None])

    def _pods(self) -> list[dict[str, Any]]:
        return [body for (kind, _), body in self.cluster.objects.items() if kind == "Pod"]

    def record(self) -> dict[str, Any]:
        """The scenario as JSON data."""
        cost = self.status.cost
        assert cost is not None
        pods = self._lives()
        held = sum(piece["to"] - piece["from"] for pod in pods for piece in pod["pieces"]) * 8 * 1_000_000
        assert held == cost.held_gpu_microseconds, "the picture shows what the ledger holds"
        return {
            "spec": {key: SPEC[key] for key in ("nodes", "pool", "elasticity", "checkpoint")} | {"steps": STEPS},
            "deeds": [{"at": at, "node": node, "what": what} for at, (node, what, _) in STORY.items()],
            "generations": [_generation(item) for item in self.status.generations],
            "pods": pods,
            "steps": self.steps,
            "saved": [[_second(at), step] for stage in self.cluster.stages.values() for step, at in stage.saved],
            "events": self.events,
            "restarts": self.status.restarts.model_dump(),
            "gpuSeconds": {b: us / 1e6 for b, us in cost.gpu_microseconds_by_bucket.items()},
            "micros": cost.micros_by_bucket,
            "total": cost.total,
        }

    def _lives(self) -> list[dict[str, Any]]:
        """Every pod's held time, cut by what it was used for."""
        ledger = next(b for (k, name), b in self.cluster.objects.items() if k == "ConfigMap" and "ledger" in name)
        (text,) = ledger["data"].values()
        entries = json.loads(text)["entries"]
        lives = [life_of(generation, run_over=True) for generation in self.status.generations]
        found = []
        for uid in dict.fromkeys(entry["uid"] for entry in entries):
            own = [entry for entry in entries if entry["uid"] == uid]
            begin, end = min(_us(e["from"]) for e in own), max(_us(e["to"]) for e in own)
            name = own[0]["pod"]
            member_of = [name in life.members and life.created >= begin for life in lives]
            pieces = [
                {
                    "from": _relative(max(p.start, begin)),
                    "to": _relative(min(p.end, end)),
                    "bucket": p.span.bucket.value,
                }
                for p in pod_life(lives, member_of, begin)
                if min(p.end, end) > max(p.start, begin)
            ]
            found.append({"pod": name, "node": self.places[uid], "pieces": pieces})
        return found


def _generation(item: GenerationStatus) -> dict[str, Any]:
    return {
        "number": item.number,
        "reason": item.reason,
        "nodes": len(item.members),
        "from": _second(item.created_at),
        "to": _second(item.ended_at) if item.ended_at else None,
        "endCause": item.end_cause,
        "lostFromStep": item.lost_from_step,
        "lastStep": item.progress.step if item.progress else 0,
    }


def _second(at: datetime) -> float:
    return (at - START).total_seconds()


def _us(text: str) -> int:
    return microseconds(datetime.fromisoformat(text))


def _relative(us: int) -> float:
    return (us - microseconds(START)) / 1_000_000


def tell() -> dict[str, Any]:
    """Run the scenario and return its record."""
    teller = Teller()
    asyncio.run(teller.run())
    return teller.record()


def table(record: dict[str, Any]) -> str:
    """What each change cost, as the events told it, in Markdown."""
    lines = ["| second | change | steps lost | seconds | GPU-minutes | USD |", "|---:|---|---:|---:|---:|---:|"]
    began = {item["number"]: item for item in record["generations"]}
    for event in record["events"]:
        told = RECOVERED.match(event["message"])
        if event["reason"] != "Recovered" or told is None:
            continue
        world = began[int(told["generation"])]
        change = f"`{world['reason']}`, {world['nodes']} nodes from then on"
        cells = (
            f"{world['from']:.0f}",
            change,
            told["lost"],
            told["seconds"],
            told["minutes"],
            f"{float(told['cost']):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page_with(text: str, record: dict[str, Any]) -> str:
    """The page with the present table."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{table(record)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    told = tell()
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in told.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.write_text(page_with(PAGE.read_text(), told))
