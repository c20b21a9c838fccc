"""A tracker with its files in the run's storage, and the object that says how far each was told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from videotrain_api.resource.tracking import Tracker as Name
from videotrain_api.schema import ApiModel
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.journal.trackers import Tracker
from videotrain_trainer.storage import ObjectStore


class Told(ApiModel):
    """tracking/told.json, sealed: what trackers were told, and stored where they keep files."""

    uid: str
    """Of the run; another one under the same name was told nothing."""
    trackers: dict[str, dict[str, int]]
    """The newest step of each curve, by tracker."""


def read_told(store: ObjectStore, prefix: str) -> Told | None:
    """What trackers were told; None before they were told anything.

    Args:
        store: of the run.
        prefix: its folder `tracking`.

    Raises:
        DamagedObject: it cannot be read.
    """
    try:
        return read_checked(
            store,
            f"{prefix}/told.json",
            lambda data: Told.from_wire(unsealed_json(data)),
            "delete it; curves may then show steps twice",
        )
    except ObjectMissing:
        return None


def write_told(store: ObjectStore, prefix: str, uid: str, trackers: Mapping[str, Mapping[str, int]]) -> None:
    """Say how far each tracker was told."""
    told = Told(uid=uid, trackers={name: dict(steps) for name, steps in trackers.items()})
    store.put(f"{prefix}/told.json", sealed_json(told.to_wire()))


@dataclass
class StoredTracker:
    """A tracker, and how far it is."""

    name: Name
    tracker: Tracker
    folder: Path
    """Of its files here."""
    prefix: str
    """Of its files in the run's storage."""
    told: dict[str, int]
    """Newest step of each curve."""
    stored: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of the files that are stored, by their path in the folder."""

    def fetch(self, store: ObjectStore) -> None:
        """Bring back the files that it goes on with."""
        for found in store.list(self.prefix) if self.tracker.CONTINUES else ():
            path = self.folder / found.uri.removeprefix(f"{self.prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(found, path)
        self.stored = {name: state for _, name, state in files_below(self.folder)}

    def store(self, store: ObjectStore) -> None:
        """Store the files that changed since."""
        files = list(files_below(self.folder))
        # First: beside a newer database, the log of an older one would be taken for its own.
        for gone in self.stored.keys() - {name for _, name, _ in files}:
            store.delete(f"{self.prefix}/{gone}")
            del self.stored[gone]
        for path, name, state in files:
            if self.stored.get(name) != state:
                store.put(f"{self.prefix}/{name}", path.read_bytes())
                self.stored[name] = state


def files_below(folder: Path) -> Iterator[tuple[Path, str, tuple[int, int]]]:
    """Files at any depth with their path in the folder, size and time; links are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            facts = path.stat()
            yield path, path.relative_to(folder).as_posix(), (facts.st_size, facts.st_mtime_ns)
