"""What workers wrote: kept beyond the life of their pods, and checked against what must hold whatever happens."""

from __future__ import annotations

import os
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from videotrain_api.records import TRAINER_RECORD, CheckpointRecord, StartedRecord, StepRecord, WorkerExit

_FILE = re.compile(r"^records-(?P<generation>\d+)-\d+\.jsonl$")
_POD = re.compile(r"^(?P<run>.+)-w(?P<index>\d+)-[0-9a-f]{8}$")


@dataclass
class Generation:
    """What the workers of one generation wrote."""

    number: int
    started: list[StartedRecord] = field(default_factory=list)
    steps: dict[int, dict[str, StepRecord]] = field(default_factory=lambda: defaultdict(dict))
    """By step and pod."""
    saved: dict[int, CheckpointRecord] = field(default_factory=dict)
    exits: list[WorkerExit] = field(default_factory=list)

    def __str__(self) -> str:
        ends = [(end.code, end.outcome, end.message[:80]) for end in self.exits]
        steps = f"steps {min(self.steps, default=None)}-{self.last}"
        started = [record.resumed_step for record in self.started]
        return f"generation {self.number}: resumed {started}, {steps}, saved {sorted(self.saved)}, exits {ends}"

    @property
    def resumed(self) -> int | None:
        """The step from which it went on."""
        steps = {record.resumed_step for record in self.started}
        assert len(steps) <= 1, f"members of generation {self.number} started from different steps: {steps}"
        return next(iter(steps), None)

    @property
    def last(self) -> int | None:
        """Its last step."""
        return max(self.steps, default=None)

    @property
    def first_step_at(self) -> datetime | None:
        """End of its first step."""
        return min((r.finished_at for found in self.steps.values() for r in found.values()), default=None)

    @property
    def last_step_at(self) -> datetime | None:
        """End of its last step."""
        return max((r.finished_at for found in self.steps.values() for r in found.values()), default=None)


class RecordKeeper:
    """Links every records file as soon as it appears, so that it outlives its pod, and reads what was added to it."""

    def __init__(self, pods: Path, kept: Path) -> None:
        self._pods, self._kept = pods, kept
        self._kept.mkdir(parents=True, exist_ok=True)
        self._read: dict[Path, int] = {}
        self._links: dict[Path, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._runs: dict[str, dict[int, Generation]] = defaultdict(dict)
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Link nothing more."""
        self._over.set()
        self._thread.join()

    def run(self, name: str) -> dict[int, Generation]:
        """The generations of a run, by number, with everything that was written so far."""
        with self._lock:
            for path, (run, pod) in self._links.items():
                if run == name and path.stat().st_size > self._read.get(path, 0):
                    self._take(path, pod, self._runs[run])
            return self._runs[name]

    def _work(self) -> None:
        while not self._over.wait(0.05):
            self._link_new()

    def _link_new(self) -> None:
        for folder in os.scandir(self._pods) if self._pods.is_dir() else ():
            match = _POD.match(folder.name)
            if not match:
                continue
            try:
                names = [entry.name for entry in os.scandir(Path(folder.path) / ".volumes" / "run")]
            except FileNotFoundError:
                continue
            for name in names:
                target = self._kept / f"{folder.name}--{name}"
                if _FILE.match(name) and target not in self._links:
                    try:
                        os.link(Path(folder.path) / ".volumes" / "run" / name, target)
                    except FileNotFoundError:
                        continue
                    with self._lock:
                        self._links[target] = match["run"], folder.name

    def _take(self, path: Path, pod: str, generations: dict[int, Generation]) -> None:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            whole, _, _ = file.read().rpartition(b"\n")
        self._read[path] = self._read.get(path, 0) + len(whole) + (1 if whole else 0)
        for line in whole.splitlines():
            try:
                record = TRAINER_RECORD.validate_json(line)
            except ValidationError as error:
                raise AssertionError(f"{path}: no record: {line!r}") from error
            generation = generations.setdefault(record.generation, Generation(record.generation))
            if isinstance(record, StepRecord):
                generation.steps[record.step][pod] = record
            elif isinstance(record, StartedRecord):
                generation.started.append(record)
            elif isinstance(record, CheckpointRecord):
                generation.saved[record.step] = record
            elif isinstance(record, WorkerExit):
                generation.exits.append(record)


def check_world(generations: dict[int, Generation]) -> None:
    """No two generations ever trained at the same time, and each went on exactly where a checkpoint was complete.

    Raises:
        AssertionError: it is not so.
    """
    trained = [generations[number] for number in sorted(generations) if generations[number].steps]
    for before, after in pairwise(trained):
        assert before.last_step_at <= after.first_step_at, (
            f"generation {before.number} finished a step at {before.last_step_at}, after generation {after.number} had "
            f"finished its first one at {after.first_step_at}"
        )
    saved: set[int] = {0}
    for generation in (generations[number] for number in sorted(generations)):
        if generation.steps:
            _check_steps(generation)
            complete = f"complete were {sorted(saved)[-5:]}"
            assert generation.resumed in saved, f"{generation} resumed from a step that nobody saved; {complete}"
        saved |= set(generation.saved)


def _check_steps(generation: Generation) -> None:
    steps = sorted(generation.steps)
    first = (generation.resumed or 0) + 1
    assert steps == list(range(first, first + len(steps))), f"{generation} left out steps: {steps[:5]}...{steps[-5:]}"
