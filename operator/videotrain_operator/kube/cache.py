"""What informers and our own writes have told about one kind, indexed by run and by node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_RUN_UID

ANSWER_SECONDS: Final = 300.0
"""No answer to a write comes later than that after the watch has told what happened since."""


class Key(NamedTuple):
    """Identity of an object of a kind, apart from its uid."""

    namespace: str
    name: str


def key_of(body: Json) -> Key:
    """Namespace and name of an object."""
    head = body["metadata"]
    return Key(head.get("namespace", ""), head["name"])


def version_of(body: Json) -> int:
    """The resourceVersion as the number that it is; 0 if there is none."""
    return int(body["metadata"].get("resourceVersion") or 0)


class Store:
    """Newest known state of every object of a kind.

    The answer to a write is stored at once, so a watch that lags never makes the operator do a thing twice. An older
    version never replaces a newer one. An object that we removed does not come back through a late event, nor does one
    through a late answer if the watch has told of its end or a list did not hold it any more.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known.

        Args:
            monotonic: the clock by which it is forgotten what has ended, seconds.
        """
        self._monotonic = monotonic
        self._gone: dict[str, tuple[int, float]] = {}
        """By uid, in order of time: the version that told of its end, and when it did."""
        self._listed: dict[str, int] = {}
        """By namespace, or for all of them: version of the newest list."""
        self._objects: dict[Key, Json] = {}
        self._by_run: dict[str, dict[Key, Json]] = {}
        self._by_node: dict[str, dict[Key, Json]] = {}
        self._removed: set[str] = set()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Json | None:
        """The object, if it is known."""
        return self._objects.get(key)

    def all(self, namespace: str = "") -> list[Json]:
        """Every object, of one namespace if one is given."""
        return [body for key, body in self._objects.items() if not namespace or key.namespace == namespace]

    def of_run(self, uid: str) -> list[Json]:
        """Objects that carry the run's uid, oldest first."""
        bodies = self._by_run.get(uid, {}).values()
        return sorted(bodies, key=lambda b: (b["metadata"].get("creationTimestamp", ""), b["metadata"]["name"]))

    def on_node(self, node: str) -> list[Json]:
        """Pods that are bound to a node."""
        return list(self._by_node.get(node, {}).values())

    def names(self) -> tuple[Key, ...]:
        """Namespace and name of every object."""
        return tuple(self._objects)

    def put(self, body: Json) -> bool:
        """Store a state; whether it is news."""
        key, uid = key_of(body), body["metadata"]["uid"]
        known = self._objects.get(key)
        if uid in self._removed or self._has_ended(body):
            return False
        before = version_of(known) if known is not None else self._listed.get(key.namespace, self._listed.get("", -1))
        if version_of(body) <= before:
            return False
        if known is not None:
            self._unlink(key, known)
        self._objects[key] = body
        for index, value in self._indices(body):
            index.setdefault(value, {})[key] = body
        return True

    def remove(self, body: Json, *, ours: bool = False) -> Json | None:
        """Forget an object, unless another one has its name by now.

        Args:
            body: the object in any version.
            ours: we deleted it, so late events about it are to be ignored until the watch tells of its deletion.

        Returns:
            Its newest known state; None if it was not known.
        """
        key, uid = key_of(body), body["metadata"]["uid"]
        if ours:
            if not self._has_ended(body):
                self._removed.add(uid)
        else:
            self._removed.discard(uid)
            self._note_end(uid, version_of(body))
        known = self._objects.get(key)
        if known is None or known["metadata"]["uid"] != uid:
            return None
        del self._objects[key]
        self._unlink(key, known)
        return known

    def begin_list(self, namespace: str = "") -> None:
        """A list is about to be stored: all that it holds is there, however old.

        Args:
            namespace: the namespace that is listed; all if empty.
        """
        if namespace:
            self._listed.pop(namespace, None)
        else:
            self._listed.clear()

    def keep_only(self, keys: Iterable[Key], version: int, namespace: str = "") -> list[Json]:
        """Forget what a list of that resourceVersion does not hold; returns it. Younger objects stay.

        Args:
            keys: what the list holds.
            version: resourceVersion of the list.
            namespace: the namespace that was listed; all if empty.
        """
        self._listed[namespace] = version
        listed = set(keys)
        missing = [body for body in self.all(namespace) if key_of(body) not in listed]
        gone = [body for body in missing if version_of(body) <= version]
        for body in gone:
            self.remove(body)
            self._note_end(body["metadata"]["uid"], version)
        return gone

    def _has_ended(self, body: Json) -> bool:
        """This state of the object is from before its end, of which the watch has told."""
        end = self._gone.get(body["metadata"]["uid"])
        return end is not None and version_of(body) <= end[0]

    def _note_end(self, uid: str, version: int) -> None:
        now = self._monotonic()
        self._gone.pop(uid, None)
        self._gone[uid] = version, now
        while (first := next(iter(self._gone))) and now - self._gone[first][1] > ANSWER_SECONDS:
            del self._gone[first]

    def _indices(self, body: Json) -> Iterator[tuple[dict[str, dict[Key, Json]], str]]:
        run = (body["metadata"].get("labels") or {}).get(LABEL_RUN_UID)
        if run:
            yield self._by_run, run
        node = body.get("spec", {}).get("nodeName")
        if node:
            yield self._by_node, node

    def _unlink(self, key: Key, body: Json) -> None:
        for index, value in self._indices(body):
            members = index.get(value, {})
            members.pop(key, None)
            if not members:
                index.pop(value, None)
