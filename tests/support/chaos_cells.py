"""One cell of the table: a fault in a phase, and what must be true afterwards."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from support.chaos_faults import Fault, follower
from support.chaos_lane import EVERY_STEPS, Lane
from support.chaos_records import Generation, check_world

MOST_LOST = 2 * EVERY_STEPS
"""A checkpoint is written while steps go on, so a hard fault may cost the steps since the one before it."""
SUSPENDED = r"Suspended: SuspendedByUser"
LONGEST_PAUSE = 20.0
"""Seconds between two steps of a run that must not notice an outage; a step takes a quarter of a second."""


@dataclass(frozen=True)
class Cell:
    """What came out."""

    end: str
    """`goes on`, `Suspended` or `gone`."""
    counter: str
    """The counter of status.restarts that rose, or nothing."""
    lost: int
    """Steps done again."""
    seconds: float
    """From the fault to the first step after it, to the end of the suspension, or the longest pause between steps."""
    event: str
    """What a person sees."""

    def __str__(self) -> str:
        if self.end == "gone":
            return f"gone; {self.seconds:.1f} s"
        counter = f"{self.counter} +1" if self.counter else "no restart"
        return f"{self.end}; {counter}; {self.lost} lost; {self.seconds:.1f} s"


@dataclass(frozen=True)
class Before:
    """A lane at the moment of the fault."""

    at: datetime
    since: datetime
    """When its phase was entered."""
    restarts: dict[str, int]
    number: int
    """Generation that was disturbed."""


async def enter(lane: Lane) -> datetime:
    """Bring a lane into its phase; when that began."""
    await lane.whole()
    since = datetime.now(UTC)
    await lane.enter()
    return since


async def disturb(lane: Lane, fault: Fault, since: datetime) -> Before:
    """Inject the fault and let held workers go on."""
    number = lane.rosters[-1].generation if lane.phase == "suspending" else (lane.live or {}).get("number")
    assert number is not None, lane.explain()
    lane.node = lane.pod(follower(lane))["spec"]["nodeName"]
    before = Before(datetime.now(UTC), since, lane.restarts, number)
    await fault.inject(lane)
    lane.open_gates()
    return before


async def finish(lane: Lane, fault: Fault, before: Before) -> Cell:
    """Wait for the expected end, check everything, and make the lane whole again."""
    kinds = {"none": _untouched, "graceful": _restarted, "hard": _restarted}
    end = _suspended if lane.phase == "suspending" else kinds[fault.cost]
    try:
        cell = await end(lane, fault, before)
    finally:
        if fault.heal:
            await fault.heal(lane)
    if lane.phase == "suspending":
        cell = replace(cell, lost=await _resume(lane, fault))
    await lane.whole()
    expected = before.restarts | ({cell.counter: before.restarts[cell.counter] + 1} if cell.counter else {})
    assert lane.restarts == expected, f"restarts were {before.restarts}, are {lane.restarts}, {cell}\n{lane.explain()}"
    check_lane(lane)
    return cell


def check_lane(lane: Lane) -> None:
    """What must hold at any time."""
    try:
        check_world(lane.generations)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{lane.explain()}") from error
    assert not lane.problems, "\n".join([*lane.problems, lane.explain()])


async def _suspended(lane: Lane, fault: Fault, before: Before) -> Cell:
    """The run ends suspended and holds nothing."""
    await lane.wait(lambda: lane.status.get("phase") == "Suspended" and not lane.present(), "it holds no node")
    at = datetime.now(UTC)
    event = await _event(lane, SUSPENDED, before.since)
    return Cell("Suspended", "", 0, (at - before.at).total_seconds(), event)


async def _resume(lane: Lane, fault: Fault) -> int:
    """Let a suspended run go on; the steps that it does again."""
    old = lane.newest
    assert old is not None
    await lane.suspend(False)
    return _lost(lane, fault, [old], await _next_world(lane, old.number))


async def _untouched(lane: Lane, fault: Fault, before: Before) -> Cell:
    """The generation goes on as if nothing had been."""
    beyond = (lane.newest.last or 0) if lane.newest and lane.newest.number == before.number else 0
    back = datetime.now(UTC)

    def goes_on() -> bool:
        newest = lane.newest
        if newest is None or newest.number != before.number or not newest.last:
            return False
        return newest.last > beyond + EVERY_STEPS and newest.last_step_at > back and _observed(lane, newest, back)

    await lane.wait(goes_on, f"generation {before.number} goes on")
    world = lane.generations[before.number]
    assert lane.rosters[-1].generation == before.number, lane.explain()
    assert max(world.saved) > beyond, f"nothing was saved after step {beyond}\n{lane.explain()}"
    pause = _longest_pause(world, before.at)
    assert pause < LONGEST_PAUSE, f"{pause} s without a step\n{lane.explain()}"
    event = await _event(lane, fault.event, before.at) if fault.event else ""
    return Cell("goes on", "", 0, pause, event)


def _observed(lane: Lane, world: Generation, back: datetime) -> bool:
    """The operator has looked at the run since: it knows of a checkpoint that was made after the outage."""
    late = [point for point in world.saved.values() if point.committed_at > back]
    known = [stage["savedStep"] for stage in lane.status["stages"]]
    return bool(late) and known[0] >= late[0].step


async def _restarted(lane: Lane, fault: Fault, before: Before) -> Cell:
    """Another generation takes over."""
    new = await _next_world(lane, before.number)
    old = [g for n, g in lane.generations.items() if before.number <= n < new.number and g.steps]
    event = await _event(lane, fault.event, before.at)
    await _event(lane, r"Recovered: generation \d+ trains", before.at)
    assert new.first_step_at is not None
    seconds = (new.first_step_at - before.at).total_seconds()
    return Cell("goes on", fault.cause, _lost(lane, fault, old, new), seconds, event)


async def _next_world(lane: Lane, number: int) -> Generation:
    """The first generation after one that trains."""

    def later() -> Generation | None:
        found = [g for n, g in lane.generations.items() if n > number and g.steps]
        return min(found, key=lambda g: g.number, default=None)

    found = await lane.wait(later, f"a generation after {number} trains")
    assert isinstance(found, Generation)
    return found


def _lost(lane: Lane, fault: Fault, old: list[Generation], new: Generation) -> int:
    """Steps that were done again; as many as the kind of fault may cost."""
    assert new.resumed is not None
    lost = max([0, *((g.last or 0) - new.resumed for g in old)])
    most = MOST_LOST if fault.cost == "hard" else 0
    assert lost <= most, f"{lost} steps were lost, at most {most} may be\n{lane.explain()}"
    return lost


def _longest_pause(world: Generation, since: datetime) -> float:
    ends = sorted(min(r.finished_at for r in found.values()) for found in world.steps.values())
    marks = [since, *(end for end in ends if end > since)]
    return max((later - earlier).total_seconds() for earlier, later in pairwise(marks))


async def _event(lane: Lane, pattern: str, since: datetime) -> str:
    def found() -> str | None:
        return next((line for line in lane.told(since) if re.search(pattern, line)), None)

    return str(await lane.wait(found, f"an event like {pattern!r}"))


async def run_row(lanes: list[Lane], fault: Fault) -> dict[str, Cell | BaseException]:
    """Disturb every lane in its phase; what came out by phase."""
    if fault.outage is None:
        turn = asyncio.Semaphore(fault.at_once)
        results = await asyncio.gather(*(_alone(lane, fault, turn) for lane in lanes), return_exceptions=True)
    else:
        results = await _together(lanes, fault)
    return {lane.phase: result for lane, result in zip(lanes, results, strict=True)}


async def _alone(lane: Lane, fault: Fault, turn: asyncio.Semaphore) -> Cell:
    async with turn:
        return await finish(lane, fault, await disturb(lane, fault, await enter(lane)))


async def _together(lanes: list[Lane], fault: Fault) -> list[Cell | BaseException]:
    outage = fault.outage
    assert outage is not None
    rig = lanes[0].rig
    entered = await asyncio.gather(*(enter(lane) for lane in lanes))
    await outage.begin(rig)
    begun = [await disturb(lane, fault, since) for lane, since in zip(lanes, entered, strict=True)]
    await asyncio.sleep(outage.seconds)  # the outage itself
    await outage.end(rig)
    pairs = zip(lanes, begun, strict=True)
    return await asyncio.gather(*(finish(lane, fault, before) for lane, before in pairs), return_exceptions=True)
