"""Agents, worlds and checkpoints of the simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from videotrain_api.records import GenerationProgress, Roster, SavedPoint


@dataclass
class SimStage:
    """What is saved of a stage: it survives everything."""

    saved: list[tuple[int, datetime]] = field(default_factory=list)


@dataclass
class SimAgent:
    """The agent of one pod: obeys the roster that it sees."""

    uid: str
    roster: Roster | None = None
    current: GenerationProgress | None = None
    previous: GenerationProgress | None = None
    silent: bool = False


@dataclass
class SimWorld:
    """One generation that trains."""

    roster: Roster
    launched: datetime
    stage: str
    resumed: int
    total: int
    step: int
    started: datetime | None = None
    first: datetime | None = None
    last: datetime | None = None
    points: list[SavedPoint] = field(default_factory=list)
    hung: bool = False
    state: str = "starting"
    ended: datetime | None = None
    exit_code: int = 0
    exits: dict[str, int] = field(default_factory=dict)
