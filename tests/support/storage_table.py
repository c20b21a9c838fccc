"""The outcomes as tables, for the terminal and for docs/reference/storage-faults.md."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from support.storage_cells import EVERY_STEPS, KILLED_AT, PHASES, STEPS, Place, can_meet
from support.storage_proxy import BURST, FAULTS, KINDS, SLOW_SECONDS
from support.storage_runs import MOST_LOST, Cell

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "storage-faults.md"
CAPTIONS_HEADING = "\n## Tables of captions\n"
"""The last section, which a test of its own writes."""


class Table:
    """Outcomes by fault and place.

    Args:
        places: every place that a run has.
    """

    def __init__(self, places: set[Place]) -> None:
        self._began = time.monotonic()
        self._places = places
        self._cells: dict[str, Mapping[Place, Cell]] = {}

    def add(self, fault: str, cells: Mapping[Place, Cell]) -> None:
        """Add the cells of a fault."""
        self._cells[fault] = cells

    def wanted(self, fault: str) -> list[Place]:
        """Places that meet a fault. Silence takes a minute: of places that differ by the object alone one meets it."""
        places = sorted(place for place in self._places if can_meet(place.kind, fault))
        return list({(place.phase, place.kind): place for place in places}.values()) if fault == "silence" else places

    def wrong(self, fault: str) -> list[str]:
        """Cells that are not as they must be."""
        cells = self._cells[fault]
        found = [f"{place.phase}, {place.kind} of {place.what}, {fault}: {cell.end}: {cell.problem}"
                 for place, cell in sorted(cells.items()) if cell.problem]  # fmt: skip
        return found + [f"{place.phase}, {place.kind} of {place.what}, {fault}: not met" for place in self.wanted(fault)
                        if place not in cells]  # fmt: skip

    def publish(self) -> None:
        """Show everything; write the page where that is wanted and every fault was met."""
        text = self._text()
        print(f"\n{text}")
        if os.environ.get("VIDEOTRAIN_WRITE_DOCS") == "1" and not set(FAULTS) - set(self._cells):
            PAGE.write_text(text + "".join(PAGE.read_text().partition(CAPTIONS_HEADING)[1:]))

    def _text(self) -> str:
        parts = [_MEANING]
        for kind in KINDS:
            phases = [phase for phase in PHASES if any((p.phase, p.kind) == (phase, kind) for p in self._places)]
            parts.append(f"### {kind}\n\n| Fault | {' | '.join(phases)} |\n|---|{'---|' * len(phases)}")
            parts[-1] += "".join(
                f"\n| {fault} | {' | '.join(self._cell(fault, phase, kind) for phase in phases)} |"
                for fault in FAULTS
                if can_meet(kind, fault)
            )
        return "\n\n".join([*parts, _CHECKS, *self._wrong_text(), _setting(time.monotonic() - self._began)])

    def _cell(self, fault: str, phase: str, kind: str) -> str:
        """The worst of what became of the objects that are asked for in this way."""
        cells = [
            cell for place, cell in self._cells.get(fault, {}).items() if (place.phase, place.kind) == (phase, kind)
        ]
        return str(max(cells, key=lambda cell: cell.weight)) if cells else "not run"

    def _wrong_text(self) -> list[str]:
        wrong = [line for fault in self._cells for line in self.wrong(fault)]
        lines = [f"- {_plain(line)}" for line in wrong]
        return ["## Not as it should be", "\n".join(lines)] if lines else []


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:300]


_MEANING = f"""\
# What faults of the object store do to a run

Every kind of request to the object store meets every fault that its answer can have, in every phase in which a run
sends it, once for every kind of object (of silence: for one). A cell says what followed, of several the worst:

- its end: *goes on*, nothing was restarted; or a counter of `status.restarts` with *+1* (`spec.failurePolicy.limits`
  bounds each), the world was started again;
- the steps that were done again; no more than {MOST_LOST} may be, since a checkpoint is written while steps go on;
- the bill: *exact*, its buckets add up to the time that nodes were held, to the microsecond, and nothing is estimated;
- the order: *same*, the samples that went into the weights are those of a run that nothing had happened to, in the
  same order, none counted twice and none missing.

The faults are:

- *reset*: the connection is reset, the request is not carried out; *cut*: the answer ends in the middle;
- *404*, *403* (`RequestTimeTooSkewed`), *409* (`ConditionalRequestConflict`), *412*, *500*: answered once, the request
  is not carried out; *503 burst* (`SlowDown`) and *credentials expired* (400, `ExpiredToken`): {BURST} times in a row;
- *200 with an error document*: success by its status, `InternalError` by its content, the request is not carried out;
- *stale list*: a listing as it was before anything was stored; *flipped bit*: one bit of the body;
- *silence*: the request is taken and never answered; *slow body*: the body trickles for {SLOW_SECONDS:.0f} s;
- *lost answer*: the request is carried out, and the connection is reset instead of an answer.

The phases are:

- *curate*: reading raw videos from the object store and storing clips; *encode*: storing latents;
- *start*: a training stage begins; *running*: it reads latents; *checkpoint*: it saves, with retention;
- *resume*: its worker was killed, and another generation loads the newest checkpoint;
- *stage end*: the final weights are made from the last checkpoint.

## Outcomes, by kind of request"""

_CHECKS = """\
## What was checked

In every run that these cells are from, beside its bill and its order:

- the run succeeded, and no process was left;
- no generation went on below the newest checkpoint that was complete when it began;
- the clips that curation kept and dropped were those of a run that nothing had happened to;
- the last loss of every stage was the same to the last bit, so no wrong value had been read."""


def written(seconds: float) -> str:
    """When, how long and on what a part of the page was measured."""
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}) and {memory:.0f} GiB of memory"
    return f"""\
Written by `VIDEOTRAIN_WRITE_DOCS=1 tox -e storage` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes, on
one machine with {machine}, without a GPU, beside other work."""


def _setting(seconds: float) -> str:
    names = ("videotrain-trainer", "torch", "obstore", "s3fs")
    software = ", ".join(f"{name} {version(name)}" for name in names)
    return f"""\
## How this was measured

{written(seconds)}

- Real: whole runs of `videotrain local` with the agent, the fork server and a worker; an S3 server (SeaweedFS), and
  before it a proxy that spoils one answer after another. Python {platform.python_version()}, {software}.
- Small: the model, and the world: one node with one worker. A stage of {STEPS} steps saves every {EVERY_STEPS} and
  keeps the last two; its worker is killed as it begins to save step {KILLED_AT}, so that every run resumes once.
- Together: the cells of one fault are met in one run, one after the other; a restart is put to the fault that was met
  last before it. Where a run fails, the other cells are met in a further run.
"""
