"""The cells of the storage fault table: kinds of requests by phase of a run, and who meets which fault when."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from support.storage_proxy import BURST, BURSTS, FAULTS, KINDS, StorageRequest

PLANNED = "planned kill"
CAPTIONS = "captions"
"""What the keys of a table of captions have in common, and no others outside of a run's folder."""
PHASES = ("curate", "encode", "start", "running", "checkpoint", "resume", "stage end")
EVERY_STEPS = 10
STEPS = 50
"""Of the stage `train`."""
KILLED_AT = 30
"""The worker is killed as it begins to store this step, so that every run resumes once."""

_UID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_READS = {"LIST", "HEAD", "GET", "ranged GET"}
_WITH_BODY = {"LIST", "GET", "ranged GET", "multipart create", "multipart complete"}
_WRITES_ONE = {"PUT", "conditional PUT", "multipart complete"}
_MEANT_FOR = {
    "cut": _WITH_BODY,
    "404": _READS | {"DELETE", "multipart part", "multipart complete"},
    "409": _WRITES_ONE | {"DELETE"},
    "412": {"conditional PUT"},
    "200 with an error document": _WITH_BODY | _WRITES_ONE | {"multipart part"},
    "stale list": {"LIST"},
    "flipped bit": {"GET", "ranged GET"},
    "slow body": {"LIST", "GET", "ranged GET"},
}
"""Kinds of requests that can meet a fault; those that are not named meet all kinds."""


@dataclass(frozen=True, order=True)
class Place:
    """One kind of request for one kind of object in one phase."""

    phase: str
    kind: str
    what: str = ""
    """The object without what tells it from others of its kind: `train/checkpoints/step-*/commit.json`. Where
    a fault is wanted, nothing stands for the first object of any kind."""


@dataclass(frozen=True)
class Fired:
    """A fault that a place has met."""

    place: Place
    fault: str
    key: str
    at: datetime


def can_meet(kind: str, fault: str) -> bool:
    """Whether such an answer can be given to such a request."""
    return kind in _MEANT_FOR.get(fault, set(KINDS))


def rows() -> list[tuple[str, str]]:
    """Kind of request and fault, in the order of the page."""
    return [(kind, fault) for kind in KINDS for fault in FAULTS if can_meet(kind, fault)]


class Course:
    """Tells from a run's requests, in their order, in which phase it is.

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._stage = "curate"
        self._exported: set[str] = set()
        self._saving = self._last = self._retained = self._ended = False
        self.killed = False
        """The worker was killed: what follows is a resume."""

    def phase(self, request: StorageRequest) -> str | None:
        """One of PHASES, or None where no fault is wanted."""
        _, _, inside = request.key.partition(f"/{self._run}/")
        stage, _, rest = inside.partition("/")
        if not stage and CAPTIONS in request.key:
            return "curate"
        self._move(stage, rest, request.kind)
        if self._stage in ("curate", "encode"):
            return self._stage if stage in (self._stage, "autoencoder", "curate") or "/raw" in request.key else None
        if self._stage == "train":
            return self._train(stage, rest, request.kind)
        return None

    def what(self, request: StorageRequest) -> str:
        """The kind of object that is asked for; raw videos are all of a kind, and so is what a table consists of."""
        _, found, inside = request.key.partition(f"/{self._run}/")
        if not found:
            return CAPTIONS if CAPTIONS in request.key else "raw"
        return re.sub(rf"{_UID}|\b{re.escape(self._run)}\b|[0-9a-f]{{8,}}|\d+", "*", inside).rstrip("/")

    def _move(self, stage: str, rest: str, kind: str) -> None:
        if rest == "weights/model.safetensors" and kind in ("PUT", "multipart complete"):
            self._exported.add(stage)
        if stage == "autoencoder":
            self._stage = "encode" if "autoencoder" in self._exported and kind not in KINDS[4:] else "autoencoder"
            self._stage = "autoencoder" if rest.startswith(("checkpoints", "fence", "order")) else self._stage
        elif stage in ("train", "sample"):
            self._stage = "sample" if "train" in self._exported and kind in ("LIST", "HEAD", "GET") else stage

    def _train(self, stage: str, rest: str, kind: str) -> str:
        if stage == "encode" and rest.startswith("shards"):
            return "running"
        writes = kind in ("PUT", "conditional PUT", "multipart create", "multipart part", "multipart complete")
        if rest.startswith("weights") and writes:
            return "stage end"
        self._saving = self._saving or (writes and rest.startswith("checkpoints"))
        self._last = self._last or (rest == f"checkpoints/step-{STEPS:08d}/commit.json" and kind == "conditional PUT")
        self._retained = self._retained or (self._last and kind == "LIST" and rest.rstrip("/") == "checkpoints")
        self._ended = self._ended or (self._retained and kind == "GET")
        if self._ended:
            return "stage end"
        return "checkpoint" if self._saving else "resume" if self.killed else "start"

    def kill_is_due(self, request: StorageRequest) -> bool:
        """The moment of the planned kill: the worker begins to store KILLED_AT."""
        begins = request.kind in ("PUT", "multipart create")
        due = not self.killed and begins and f"/train/checkpoints/step-{KILLED_AT:08d}/" in request.key
        if due:
            self.killed, self._saving = True, False
        return due


class Director:
    """The weather of one run: every place meets its fault once, one place after the other.

    Args:
        course: of the run.
        wanted: the fault of each place.
        kill: ends the worker process; None if the run shall not be killed.
    """

    def __init__(self, course: Course, wanted: Mapping[Place, str], kill: Callable[[], None] | None) -> None:
        self._course, self._kill = course, kill
        self._pending = dict(wanted)
        self.seen: set[Place] = set()
        """Every place that there was."""
        self.fired: list[Fired] = []
        self._left = 0
        self._clean = 1
        self._lock = threading.Lock()

    def __call__(self, request: StorageRequest) -> str | None:
        with self._lock:
            phase = self._course.phase(request)
            if self._kill is not None and self._course.kill_is_due(request):
                self._kill()
                self.fired.append(Fired(Place(PLANNED, request.kind), "reset", request.key, datetime.now(UTC)))
                return "reset"
            if phase is None or request.kind not in KINDS:
                return None
            return self._judge(Place(phase, request.kind, self._course.what(request)), request)

    def _judge(self, place: Place, request: StorageRequest) -> str | None:
        self.seen.add(place)
        if self._left and (self.fired[-1].place.kind, self.fired[-1].key) == (place.kind, request.key):
            self._left -= 1
            return self.fired[-1].fault
        place = place if place in self._pending else Place(place.phase, place.kind)
        # What follows at once may still be the answer to the fault before.
        if place in self._pending and self._clean:
            fault = self._pending.pop(place)
            self.fired.append(Fired(place, fault, request.key, datetime.now(UTC)))
            self._left = BURST - 1 if fault in BURSTS else 0
            self._clean = 0
            return fault
        self._left = 0
        self._clean += 1
        return None
