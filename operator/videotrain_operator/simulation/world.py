"""What runs in simulated pods: agents that obey rosters, and generations that step, save and end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from videotrain_api.records import GenerationProgress, Roster, SavedPoint, WorkerExit

PEER_LOST: Final = 82
"""Exit code of a worker whose peer has gone."""
TOLD_POINTS: Final = 8
"""Newest checkpoints that an agent tells of."""
State = Literal["starting", "running", "drained", "failed", "succeeded"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast workers are, in simulated time."""

    start_seconds: int = 2
    """From the roster to the first step."""
    every_steps: int = 10
    """Steps between two checkpoints, which take no time."""
    full_nodes: int | None = None
    """Nodes that make one step a second; fewer take longer in proportion. One step a second with any number if None."""
    node_seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage, seconds of one node for a step, whatever the number of nodes. For stages that it names not, full_nodes
    counts."""


@dataclass
class Agent:
    """The agent of one pod."""

    uid: str
    key: bytes
    """The signing key that its pod has mounted."""
    configs: Mapping[str, str]
    """The frozen stage configurations that it has mounted, by file."""
    roster: Roster | None = None
    """The newest roster that it obeyed."""
    current: GenerationProgress | None = None
    previous: GenerationProgress | None = None
    silent: bool = False
    """It neither answers nor reads rosters, while its workers go on."""


@dataclass(kw_only=True)
class World:
    """The workers of one generation."""

    roster: Roster
    launched: datetime
    total: int
    """Steps of the stage."""
    saved: list[tuple[int, datetime]]
    """Checkpoints of the stage, which outlive the generation: step and time. Shared by all its generations."""
    resumed: int = 0
    step: int = 0
    started: datetime | None = None
    first: datetime | None = None
    last: datetime | None = None
    points: list[SavedPoint] = field(default_factory=list)
    """Checkpoints of this generation."""
    hung: bool = False
    """Its step counter stands still, and nothing ends it but the operator."""
    state: State = "starting"
    ended: datetime | None = None
    exits: dict[str, int] = field(default_factory=dict)
    """Exit code by pod, of workers that failed."""
    stacks: Mapping[str, str] = field(default_factory=dict)
    """By pod, what its agent finds of its workers when they are ended for a hang."""
    credit: float = 0.0
    """Part of the next step that is done; see Pace.full_nodes."""

    def __post_init__(self) -> None:
        self.resumed = self.step = self.saved[-1][0] if self.saved else 0

    @property
    def alive(self) -> bool:
        """It trains: two such generations of one run at the same time would be two writers of one checkpoint."""
        return self.ended is None and self.state == "running" and self.started is not None

    def advance(self, now: datetime, present: Sequence[bool], pace: Pace) -> None:
        """One second of work.

        Args:
            now: the end of that second.
            present: by rank, whether the pod runs and its agent has launched this generation.
            pace: how fast it is.
        """
        if self.ended is not None or self.state in ("failed", "drained", "succeeded"):
            return
        if not all(present):
            if self.started is not None and not self.hung:
                for member, here in zip(self.roster.members, present, strict=True):
                    if here:
                        self.exits.setdefault(member.pod, PEER_LOST)
                self.state, self.ended = "failed", now
            return
        if self.started is None:
            if now - self.launched >= timedelta(seconds=pace.start_seconds):
                self.started, self.state = now, "running"
            return
        if self.hung or not self._makes_a_step(len(present), pace):
            return
        if self.step < self.total:
            self.step += 1
            self.first, self.last = self.first or now, now
            if self.step % pace.every_steps == 0:
                self._save(now)
        if self.step >= self.total:
            self._save(now)
            self.state, self.ended = "succeeded", now

    def _makes_a_step(self, nodes: int, pace: Pace) -> bool:
        for_one = pace.node_seconds.get(self.roster.stage, pace.full_nodes)
        if for_one is None:
            return True
        self.credit += nodes / for_one
        if self.credit < 1.0:
            return False
        self.credit -= 1.0
        return True

    def stop(self, now: datetime, *, drain: bool) -> None:
        """An agent ends its workers, and so the generation; with `drain` they save first, if they can."""
        if self.ended is not None:
            return
        if drain and self.alive and not self.hung:
            self._save(now)
            self.state = "drained"
        elif self.state != "succeeded":
            self.state = "drained" if drain else "failed"
        self.ended = now

    def fail(self, now: datetime, pod: str, code: int) -> None:
        """The worker of a pod exits, and its peers lose it."""
        if self.ended is None and self.started and pod in {member.pod for member in self.roster.members}:
            self.exits = {member.pod: PEER_LOST for member in self.roster.members} | {pod: code}
            self.state, self.ended = "failed", now

    def _save(self, now: datetime) -> None:
        if self.saved and self.saved[-1][0] >= self.step:
            return
        self.saved.append((self.step, now))
        point = SavedPoint(
            step=self.step,
            captured_at=self.last or now,
            committed_at=now,
            uri=f"s3://videotrain/{self.roster.stage}/{self.step}",
            data_stall_us=0,
            checkpoint_us=0,
        )
        self.points.append(point)

    def facts(self, known: GenerationProgress, pod: str, now: datetime) -> GenerationProgress:
        """What the agent of a pod tells of this generation.

        Args:
            known: what it noted when it launched it.
            pod: whose agent.
            now: when it is asked.
        """
        failed = pod in self.exits
        end = None
        if self.ended is not None or failed:
            end = WorkerExit(
                generation=known.generation,
                stage=self.roster.stage,
                local_rank=0,
                at=self.ended or now,
                code=self.exits.get(pod, 0),
                outcome="failed" if failed else "completed" if self.state == "succeeded" else "drained",
                step=self.step,
            )
        return known.model_copy(
            update={
                "state": "failed" if failed else self.state,
                "world_size": len(self.roster.members) * self.roster.processes_per_node,
                "resumed_step": self.resumed if self.started else None,
                "total_steps": self.total,
                "step": self.step,
                "launched_at": self.launched,
                "started_at": self.started,
                "first_step_at": self.first,
                "last_step_at": self.last,
                "ended_at": self.ended,
                "saved": self.points[-TOLD_POINTS:],
                "exit": end,
                "stacks": self.stacks.get(pod) if self.ended is not None else None,
            }
        )
