"""What the planner really decides in a written scenario, as a record for a picture.

    python benchmarks/figures/elasticity_story.py

It writes docs/pictures/elasticity.json and the table in docs/elasticity.md.

The operator's own observe, plan, apply and ledger run against the simulated cluster, one pass a second at least. Only
nodes, pods and trainers are simulated. A test compares the stored record with what the planner does now.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_operator.accounting.attribution import life_of, microseconds, pod_life
from videotrain_operator.reconcile import Outcome
from videotrain_operator.simulation.cluster import START, SimulatedCluster
from videotrain_operator.simulation.replay import Event, replay
from videotrain_operator.simulation.world import Pace

MANIFEST: Final = Path(__file__).with_suffix(".yaml")
DOCS: Final = Path(__file__).parents[2] / "docs"
RECORD: Final = DOCS / "pictures" / "elasticity.json"
PAGE: Final = DOCS / "elasticity.md"
BEGIN: Final = "<!-- written by benchmarks/figures/elasticity_story.py: begin -->\n"
END: Final = "<!-- end -->\n"
RECOVERED: Final = re.compile(
    r"generation (?P<generation>\d+) .*; (?P<lost>\d+) steps were lost, and it took (?P<seconds>\d+) s, "
    r"(?P<minutes>[\d.]+) GPU-minutes and (?P<cost>[\d.]+) USD"
)
PACE: Final = Pace(start_seconds=8, every_steps=40, full_nodes=4)
LONGEST_SECONDS: Final = 1040
STORY: Final[dict[int, tuple[str, str, Event]]] = {
    65: ("node-3", "free: joins after a checkpoint", lambda c: c.restore_node("node-3")),
    170: ("node-1", "lost", lambda c: c.lose_node("node-1")),
    215: ("node-1", "back: joins after a checkpoint", lambda c: c.restore_node("node-1")),
    300: ("node-2", "cordoned: workers save first", lambda c: c.cordon("node-2")),
    345: ("", "steps stand still on all nodes", lambda c: c.hang()),
    575: ("node-2", "back: growing would not pay", lambda c: c.uncordon("node-2")),
}
"""By second: the node that it happens to, what happens, and how."""


def cluster_of(run: dict[str, Any]) -> SimulatedCluster:
    """A cluster with a node for each that the run may have; the last of them is not there yet."""
    nodes = run["spec"]["nodes"]["max"]
    cluster = SimulatedCluster(run, nodes, pace=PACE)
    cluster.lose_node(f"node-{nodes - 1}")
    return cluster


@dataclass
class Teller:
    """Runs the scenario and notes what can be seen of it."""

    run: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(MANIFEST.read_text()))
    status: RunStatus = field(default_factory=RunStatus)
    events: list[dict[str, Any]] = field(default_factory=list)
    steps: list[list[Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Node by pod uid."""

    def __post_init__(self) -> None:
        self.cluster = cluster_of(self.run)

    async def tell(self) -> None:
        """Second after second, until the run is complete and its pods are gone."""
        script = {second: event for second, (_, _, event) in STORY.items()}
        await replay(self.cluster, script, seconds=LONGEST_SECONDS, after_pass=self._note)

    def _note(self, second: int, outcome: Outcome) -> None:
        self.status = outcome.plan.status
        told = self.cluster.events[len(self.events) :]
        self.events += [{"at": second, "reason": reason, "message": message} for reason, message in told]
        for pod in self.cluster.pods():
            self.places[pod["metadata"]["uid"]] = pod["spec"].get("nodeName", "")
        last = self.status.generations[-1] if self.status.generations else None
        facts = last.progress if last is not None and last.end_cause is None else None
        self.steps.append([second, facts.step if facts is not None and facts.started_at else None])

    def record(self) -> dict[str, Any]:
        """The scenario as JSON data."""
        cost, spec = self.status.cost, self.run["spec"]
        assert cost is not None
        pods = self._lives()
        held = sum(piece["to"] - piece["from"] for pod in pods for piece in pod["pieces"])
        assert held * spec["pool"]["gpusPerNode"] * 1_000_000 == cost.held_gpu_microseconds, (
            "the picture shows what the ledger holds"
        )
        return {
            "spec": {key: spec[key] for key in ("nodes", "pool", "elasticity", "checkpoint")}
            | {"steps": spec["stages"][0]["train"]["steps"]},
            "deeds": [{"at": at, "node": node, "what": what} for at, (node, what, _) in STORY.items()],
            "generations": [_generation(item) for item in self.status.generations],
            "pods": pods,
            "steps": self.steps,
            "saved": [[_second(at), step] for saved in self.cluster.saved.values() for step, at in saved],
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
    asyncio.run(teller.tell())
    return teller.record()


def table(record: dict[str, Any]) -> str:
    """What each change cost, as the events told it, in Markdown."""
    lines = ["| second | change | steps lost | seconds | GPU-minutes | USD |", "|---:|---|---:|---:|---:|---:|"]
    began = {item["number"]: item for item in record["generations"]}
    for event in record["events"]:
        told = RECOVERED.match(event["message"])
        if event["reason"] not in ("Recovered", "Resized") or told is None:
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
