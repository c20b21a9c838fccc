"""One generation in continuous time: where it is at any moment is a formula, so nothing has to be stepped through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from videotrain_api.records import GenerationProgress, Roster, SavedPoint, WorkerExit

State = Literal["starting", "running", "drained", "failed", "succeeded"]


class Place(NamedTuple):
    """How far a world is."""

    step: int
    saved: int
    """Newest step that is in a checkpoint."""
    saves: int
    """Checkpoints of this world."""
    waited: float
    """Seconds for which steps waited for checkpoints."""


@dataclass(kw_only=True)
class TimedWorld:
    """The workers of one generation. Times are seconds since the simulation began.

    They start, make `every` steps from checkpoint to checkpoint, and stand still for each of these.
    """

    roster: Roster
    begin: datetime
    """Time 0."""
    launched: float
    start_seconds: float
    step_seconds: float
    total: int
    """Steps of the stage."""
    every: int
    save_seconds: float
    resumed: int
    """Step from which it goes on."""
    state: State = "running"
    """Once `ended` is set."""
    ended: float | None = None
    hung: float | None = None
    """Since when its step counter stands still."""
    drained: int | None = None
    """The step that it saved on its way out."""
    exits: dict[str, int] = field(default_factory=dict)
    """Exit code by pod, of workers that failed."""

    @property
    def started(self) -> float:
        """When its first step begins."""
        return self.launched + self.start_seconds

    @property
    def base(self) -> int:
        """The multiple of `every` at or before the step from which it goes on."""
        return self.resumed - self.resumed % self.every

    def finish(self) -> float:
        """When its last step is saved, if nothing happens before."""
        saves = max(0, self.total - 1 - self.base) // self.every
        return self.started + (self.total - self.resumed) * self.step_seconds + (saves + 1) * self.save_seconds

    def place(self, at: float) -> Place:
        """Where it is at a time, or was when it ended."""
        at = min(at, *(end for end in (self.ended, self.hung) if end is not None), math.inf)
        if self.state == "succeeded" or self.drained is not None:
            step = self.total if self.drained is None else self.drained
            saves = max(0, step - 1 - self.base) // self.every
            return Place(step, step, saves + (step > self.resumed), saves * self.save_seconds)
        passed = at - self.started + (self.resumed - self.base) * self.step_seconds
        if at < self.started:
            return Place(self.resumed, self.resumed, 0, 0.0)
        cycle = self.every * self.step_seconds + self.save_seconds
        saves = int(passed / cycle + 1e-9)
        rest = max(0.0, passed - saves * cycle)
        made = min(self.every, int(rest / self.step_seconds + 1e-9))
        step = min(self.total, self.base + saves * self.every + made)
        saved = max(self.resumed, self.base + saves * self.every)
        return Place(step, saved, saves, saves * self.save_seconds + max(0.0, rest - self.every * self.step_seconds))

    def made(self, step: int) -> float:
        """When a step was finished."""
        saves = max(0, step - 1 - self.base) // self.every
        return self.started + (step - self.resumed) * self.step_seconds + saves * self.save_seconds

    def stop(self, at: float, *, drain: bool) -> None:
        """Its agents end it; with `drain` it saves first, if it trains."""
        if self.ended is not None:
            return
        if drain and self.hung is None and at >= self.started:
            self.drained = self.place(at).step
            at += self.save_seconds
        self.state, self.ended = "drained" if drain else "failed", at

    def fail(self, at: float, exits: dict[str, int]) -> None:
        """Workers exit with these codes by pod."""
        if self.ended is None:
            self.exits, self.state, self.ended = exits, "failed", at

    def succeed(self) -> None:
        """It has saved its last step."""
        if self.ended is None and self.hung is None:
            self.ended, self.state = self.finish(), "succeeded"

    def facts(self, pod: str, at: float) -> GenerationProgress:
        """What the agent of a pod tells of it at a time."""
        place, begun = self.place(at), at >= self.started and (self.ended is None or self.ended >= self.started)
        over = self.ended is not None and at >= self.ended
        stepped = place.step > self.resumed
        return GenerationProgress(
            generation=self.roster.generation,
            stage=self.roster.stage,
            state=self.state if over else "running" if begun else "starting",
            world_size=len(self.roster.members) * self.roster.processes_per_node,
            resumed_step=self.resumed if begun else None,
            total_steps=self.total,
            step=place.step,
            launched_at=self._at(self.launched),
            started_at=self._at(self.started) if begun else None,
            first_step_at=self._at(self.made(self.resumed + 1)) if stepped else None,
            last_step_at=self._at(self.made(place.step)) if stepped else None,
            ended_at=self._at(self.ended) if over and self.ended is not None else None,
            checkpoint_us=round(place.waited * 1e6),
            saved=self._points(place),
            exit=self._exit(pod, place.step, at) if over else None,
        )

    def _at(self, seconds: float) -> datetime:
        return self.begin + timedelta(seconds=seconds)

    def _points(self, place: Place) -> list[SavedPoint]:
        """The newest checkpoint alone: a world goes on from no other."""
        if place.saved <= self.resumed:
            return []
        captured = self.made(place.saved)
        waited = max(0, place.saved - 1 - self.base) // self.every * self.save_seconds
        point = SavedPoint(
            step=place.saved,
            captured_at=self._at(captured),
            committed_at=self._at(captured + self.save_seconds),
            uri=f"s3://simulated/{self.roster.stage}/{place.saved}",
            data_stall_us=0,
            checkpoint_us=round(waited * 1e6),
        )
        return [point]

    def _exit(self, pod: str, step: int, at: float) -> WorkerExit:
        code = self.exits.get(pod, 0)
        return WorkerExit(
            generation=self.roster.generation,
            stage=self.roster.stage,
            local_rank=0,
            at=self._at(self.ended if self.ended is not None else at),
            code=code,
            outcome="failed" if code else "completed" if self.state == "succeeded" else "drained",
            step=step,
        )
