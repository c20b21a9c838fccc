"""Every request to the object store on record, failing or held where a test wants it, and checked against a model.

A `Process` stands for a worker process: a store of its own whose requests go through one `History`. What is recorded is
what the store did and not what the process was told, so a lost answer is a request that happened. The model knows what
a correct history is, whoever wrote it in whatever order (see `History.problems`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import obstore
import pytest
from obstore.exceptions import GenericError

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer import storage as storage_module
from videotrain_trainer.storage import ObjectStore

Outcome = Literal["crash before", "crash after", "error before", "error after", "not stored", "listed empty"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""At one request: the process dies before or after the store did it; or the process lives, and is told of an error
where the store did nothing, or where it did everything (a lost answer), of success where a write was not stored, or of
no objects where there are some."""
WRITES = ("put", "create")
_ONLY_FOR = {"not stored": WRITES, "listed empty": ("list",)}
"""Kinds of requests of an outcome that others cannot have; the next one of these kinds has it instead."""
_IN_STEP = re.compile(r"/checkpoints/step-(\d+)/(.+)$")


class Crash(BaseException):
    """The process is dead; nothing in it may catch this and go on."""


@dataclass(frozen=True)
class Event:
    """A request that the store carried out."""

    process: str
    kind: str
    """get, get_range, head, list, put, create or delete; or damage, which no request makes."""
    key: str
    data: bytes = b""
    """Of a write, or what is left of a damaged object."""

    def __str__(self) -> str:
        return f"{self.process} {self.kind} {self.key.rsplit('/stage/', 1)[-1]}"


@dataclass
class History:
    """All requests of all processes, in the order in which the store carried them out."""

    keep_last: int
    events: list[Event] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    """By the identity of their client."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def problems(self) -> list[str]:
        """What must not have happened.

        - A whole checkpoint loses its commit manifest although fewer than `keep_last` newer whole ones are there.
        - A commit manifest is replaced by another content.
        - A file that a present commit manifest lists is deleted or replaced by another content.
        - A commit manifest is written whose files are not all there.

        An empty commit manifest closes a step that was given up, or deletes a complete checkpoint.
        """
        model = _Model(self.keep_last)
        return [f"event {number}: {event}: {wrong}" for number, event in enumerate(self.events)
                for wrong in model.apply(event)]  # fmt: skip

    def committed(self) -> dict[int, CheckpointManifest]:
        """Commit manifests of the whole checkpoints that are there now, by step."""
        model = _Model(self.keep_last)
        for event in self.events:
            list(model.apply(event))
        return {step: manifest for step, manifest in model.commits.items() if model.is_whole(step)}

    def tail(self, count: int = 40) -> str:
        """The last writes, for a failing test."""
        shown = [f"{n} {e}" for n, e in enumerate(self.events) if e.kind in (*WRITES, "delete")]
        return "\n".join(shown[-count:])


class _Model:
    """What is stored, by what was written and deleted."""

    def __init__(self, keep_last: int) -> None:
        self._keep_last = keep_last
        self._objects: dict[str, bytes] = {}
        self._folders: dict[int, str] = {}
        self.commits: dict[int, CheckpointManifest] = {}

    def apply(self, event: Event) -> Iterator[str]:
        match = _IN_STEP.search(event.key)
        step, name = (int(match.group(1)), match.group(2)) if match else (None, "")
        if event.kind in WRITES and name == "commit.json" and not event.data:
            yield from self._delete(event, step, name)
            self._objects[event.key] = b""
        elif event.kind in WRITES:
            yield from self._write(event, step, name)
        elif event.kind == "delete":
            yield from self._delete(event, step, name)
        elif event.kind == "damage":
            self._objects[event.key] = event.data

    def _write(self, event: Event, step: int | None, name: str) -> Iterator[str]:
        before = self._objects.get(event.key)
        self._objects[event.key] = event.data
        if step is None:
            return
        if name == "commit.json":
            if before is not None and before != event.data:
                yield "replaces a commit manifest by another"
            self.commits[step] = CheckpointManifest.model_validate_json(event.data)
            self._folders[step] = event.key.removesuffix("commit.json")
            if not self.is_whole(step):
                yield f"commits a checkpoint without its files; there are {sorted(self._objects)}"
        elif before is not None and before != event.data and self._listed(step, name):
            yield "replaces a file of a complete checkpoint by another content"

    def _delete(self, event: Event, step: int | None, name: str) -> Iterator[str]:
        whole = step is not None and name == "commit.json" and step in self.commits and self.is_whole(step)
        if self._objects.pop(event.key, None) is None or step is None:
            return
        if name == "commit.json":
            newer = self._newer_whole(step)
            self.commits.pop(step, None)
            if whole and len(newer) < self._keep_last:
                yield f"deletes a complete checkpoint; newer ones are {newer}, {self._keep_last} must be there"
        elif self._listed(step, name):
            yield "deletes a file of a complete checkpoint"

    def is_whole(self, step: int) -> bool:
        """All files that the commit manifest of a step lists are there."""
        sizes = {file.name: file.bytes for file in self.commits[step].files}
        return all(len(self._objects.get(self._folders[step] + name, b"")) == size for name, size in sizes.items())

    def _newer_whole(self, step: int) -> list[int]:
        return [other for other in self.commits if other > step and self.is_whole(other)]

    def _listed(self, step: int, name: str) -> bool:
        commit = self.commits.get(step)
        return commit is not None and name in [file.name for file in commit.files]


class Process(ObjectStore):
    """The store of one process.

    Args:
        name: for the history.
        history: that of all processes.
    """

    def __init__(self, name: str, history: History) -> None:
        super().__init__(Storage(uri="s3://unused-bucket"))
        self.name, self.history = name, history
        self.calls = 0
        self.plan: dict[int, Outcome] = {}
        """What happens at which call of this process, the first one being 0."""
        self.dead = False
        self.turn: Callable[[], None] | None = None
        """Waits until the next request may go, if somebody orders the requests of several processes."""
        self.met: list[str] = []
        """Requests at which something of the plan happened."""

    def reconnected(self) -> Self:
        """The same process."""
        return self

    def _connect(self, place: Any) -> Any:
        client = super()._connect(place)
        self.history.processes[id(client)] = self
        return client

    def request(self, kind: str, key: str, data: bytes, send: Callable[[], Any]) -> Any:
        """Carry out one request as planned, and record it."""
        if self.turn is not None:
            self.turn()
        with self.history.lock:
            if self.dead:
                raise Crash
            outcome = self.plan.get(self.calls)
            self.calls += 1
            if outcome in _ONLY_FOR and kind not in _ONLY_FOR[outcome]:
                self.plan.setdefault(self.calls, outcome)
                outcome = None
            if outcome is not None:
                self.met.append(f"{kind} {key}")
            self._fail(outcome, "before", key)
            if outcome == "not stored":
                return {"e_tag": '"of nothing"', "version": None}
            if outcome == "listed empty":
                return []
            try:
                result = send()
                self.history.events.append(Event(self.name, kind, key, data))
            finally:
                self._fail(outcome, "after", key)
            return result

    def _fail(self, outcome: Outcome | None, when: str, key: str) -> None:
        if outcome == f"crash {when}":
            self.dead = True
            raise Crash
        if outcome == f"error {when}":
            raise GenericError(f"Error performing request on {key}: connection reset, made by a test")


class _Requests:
    """Stands in the place of the module obstore in the trainer's storage."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(obstore, name)

    def _do(self, kind: str, client: Any, key: str, send: Callable[[], Any], data: bytes = b"") -> Any:
        return self._history.processes[id(client)].request(kind, key, data, send)

    def get(self, client: Any, key: str, **options: Any) -> Any:
        return self._do("get", client, key, lambda: obstore.get(client, key, **options))

    def get_range(self, client: Any, key: str, **options: Any) -> Any:
        return self._do("get_range", client, key, lambda: obstore.get_range(client, key, **options))

    def head(self, client: Any, key: str) -> Any:
        return self._do("head", client, key, lambda: obstore.head(client, key))

    def list(self, client: Any, prefix: str | None = None, **options: Any) -> Any:
        return iter([self._do("list", client, prefix or "", lambda: _rows(client, prefix, options))])

    def put(self, client: Any, key: str, data: Any, **options: Any) -> Any:
        kind = "create" if options.get("mode") == "create" else "put"
        body = data.read_bytes() if hasattr(data, "read_bytes") else bytes(data)
        return self._do(kind, client, key, lambda: obstore.put(client, key, data, **options), body)

    def copy(self, client: Any, source: str, target: str) -> Any:
        data = bytes(obstore.get(client, source).bytes())
        return self._do("put", client, target, lambda: obstore.copy(client, source, target), data)

    def delete(self, client: Any, key: str) -> Any:
        return self._do("delete", client, key, lambda: obstore.delete(client, key))


def _rows(client: Any, prefix: str | None, options: dict[str, Any]) -> Any:
    return [row for page in obstore.list(client, prefix=prefix, **options) for row in page]


def record(monkeypatch: pytest.MonkeyPatch, keep_last: int) -> History:
    """A history that all stores of the class Process write to from now on."""
    history = History(keep_last)
    monkeypatch.setattr(storage_module, "obstore", _Requests(history))
    return history
