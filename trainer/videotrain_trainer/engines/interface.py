"""What a stage gives to an engine: units, found while others are done already, and who does one of them.

An engine promises that every unit is done, that each has exactly one result, and that a restart of any size, also by
the other engine, does only what has no result yet. A unit may be begun more than once, so what it leaves in the object
store must be the same each time, or have a name of its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import xxhash

from videotrain_trainer.worker.stage_context import StageContext
from videotrain_trainer.worker.stage_reporter import StageReporter

RANGE_UNITS = 64
"""Units of a range at most: the results of a range are one object."""
RANGE_STEPS = 128
"""Steps of progress of a range of several units at most."""


SHARE_SECONDS = 5.0
"""How often a process stores results of ranges that are not done and tells how far it is."""
Tick = Callable[[int], None]
"""Called by a unit's work with the steps of this unit that are done."""


class Used(TypedDict, total=False):
    """What a worker has used since it was opened; it says nothing of what it does not measure."""

    waited_us: int
    """Microseconds for which its device had no input."""
    busy_us: int
    """Microseconds for which its device computed."""
    stored_bytes: int
    """Of samples."""


class Interrupted(Exception):
    """The unit cannot be finished within the grace period; it will be done again."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, with all that whoever does it has to know."""

    name: str
    """Hash of its input; names its result."""
    weight: int
    """Steps that it counts for in progress."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process that takes part in doing the units of a stage."""

    prefix: str
    """URI below which the stage's output lies."""
    generation: int
    """Of the world; each finds the units anew, and keeps results of those before it."""
    rank: int
    size: int
    """Processes of the world."""
    saved_step: int
    """Steps that are known to have results already."""
    grace_seconds: int
    """Time for which a process that is asked to leave may stay."""
    asked_to_leave: Callable[[], bool]
    reporter: StageReporter
    scratch: Path

    @classmethod
    def of(cls, context: StageContext) -> Member:
        """The member that a worker process is."""
        return cls(
            prefix=context.config.paths.output,
            generation=context.generation,
            rank=context.world.rank,
            size=context.world.size,
            saved_step=context.saved_step if context.restore else 0,
            grace_seconds=context.config.grace_seconds,
            asked_to_leave=context.drain.requested,
            reporter=context.reporter,
            scratch=context.scratch,
        )


class Worker(Protocol):
    """Does `Work.units_at_once` units at the same time, each in a thread of its own."""

    def do(self, unit: Unit, tick: Tick) -> dict[str, Any]:
        """Do it and return its result, JSON values only; everything else it made is stored already."""

    def used(self) -> Used:
        """So far; asked at any time, from another thread."""

    def close(self) -> None:
        """End what was started; called once."""


class Work(Protocol):
    """Makes workers. It is pickled and sent to other machines."""

    @property
    def units_at_once(self) -> int:
        """Units that a worker does at the same time."""

    @property
    def gpus(self) -> int:
        """Devices that a worker has for itself."""

    def open(self, scratch: Path, /) -> Worker:
        """A worker.

        Args:
            scratch: folder of its own for temporary files; removed by whoever gives it.
        """


@dataclass(frozen=True)
class UnitRange:
    """Neighbouring units whose results are stored together."""

    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        """Hash of its units; names its results."""
        return str(xxhash.xxh3_128_hexdigest("\n".join(unit.name for unit in self.units).encode()))

    @property
    def weight(self) -> int:
        """Steps that it counts for in progress."""
        return sum(unit.weight for unit in self.units)

    def fields(self) -> dict[str, Any]:
        """JSON values, for `from_fields`."""
        return {"units": [[unit.name, unit.weight, unit.facts] for unit in self.units]}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> UnitRange:
        """What `fields` gave."""
        return cls(tuple(Unit(*unit) for unit in fields["units"]))


def cut_ranges(units: Iterable[Unit]) -> Iterator[UnitRange]:
    """Units in ranges, each as soon as it is known.

    About every RANGE_UNITS / 2 units the name of one ends a range, wherever it stands, so a unit that is added changes
    its own range and no other.
    """
    held: list[Unit] = []
    for unit in units:
        if held and sum(other.weight for other in held) + unit.weight > RANGE_STEPS:
            yield UnitRange(tuple(held))
            held = []
        held.append(unit)
        ends = xxhash.xxh3_64_intdigest(unit.name.encode()) % (RANGE_UNITS // 2) == 0
        if ends or len(held) == RANGE_UNITS:
            yield UnitRange(tuple(held))
            held = []
    if held:
        yield UnitRange(tuple(held))
