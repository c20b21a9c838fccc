"""What is in the files that a drawing depends on, as short names that change whenever a byte does.

A local file is named by its SHA-256; that of a large one is remembered together with what the file system says about
the file. An object is named by entity tag and size, without being read: a store gives another tag to other bytes. The
same bytes in another folder or on another machine have the same name; in S3 they have another one than on a disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.files import local_path
from videotrain_trainer.hub import hub_file, is_hub
from videotrain_trainer.networks.weights import open_weights
from videotrain_trainer.sampling.loaded import Sources
from videotrain_trainer.sampling.request import Request
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.files import WANTED

REMEMBERED_BYTES = 64 * 1024 * 1024
"""Smaller files are read each time, which takes a fraction of a second."""
SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read is not remembered: its next change may have the same time."""
RANGE = 64 * 1024 * 1024


class Contents:
    """Names contents.

    Args:
        store: serves s3://.
        cache: folder on this machine where hashes of large files are remembered; shared by processes.
    """

    def __init__(self, store: ObjectStore, cache: Path) -> None:
        self._store, self._cache = store, cache

    def of_models(self, sources: Sources) -> dict[str, str]:
        """All that pixels depend on of the models: their configuration, their weights and the text encoders.

        Raises:
            ConfigError: there are no such weights.
            ObjectMissing: there is no such file.
        """
        specs = [sources.model, sources.autoencoder, sources.text_encoder]
        wired = [spec.model_copy(update={"weights": None}).to_wire() for spec in specs]
        text = json.dumps([*wired, sources.pictures], sort_keys=True)
        encoder = sources.text_encoder
        return {
            "configuration": hashlib.sha256(text.encode()).hexdigest(),
            "model": self.of_weights(sources.model_weights),
            "autoencoder": self.of_weights(sources.autoencoder_weights),
            "textEncoder": encoder.kind if encoder.weights is None else self._of_folder(encoder.weights),
        }

    def of_references(self, request: Request) -> dict[str, str]:
        """Of the pictures and the video that a request is given.

        Raises:
            ObjectMissing: there is no such file.
        """
        given = {"image": request.image, "lastImage": request.last_image, "video": request.video}
        return {name: self.of(uri) for name, uri in given.items() if uri is not None}

    def of_weights(self, source: str) -> str:
        """Of all files of a model."""
        weights = open_weights(source, store=self._store)
        places = [*weights.places, *([weights.config_place] if weights.config_place else [])]
        return _joined((str(number), self.of(place)) for number, place in enumerate(places))

    def of(self, source: str) -> str:
        """Of one file or object; a path or URI.

        Raises:
            ObjectMissing: there is none.
        """
        if is_hub(source):
            return self._of_file(hub_file(source))
        if not source.startswith("s3://"):
            return self._of_file(local_path(source))
        found = self._store.stat(source)
        if found.etag:
            return f"etag:{found.etag}:{found.size}"
        parts = (self._store.get_range(source, at, RANGE) for at in range(0, found.size, RANGE))
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    def _of_folder(self, source: str) -> str:
        """Of the files of text encoders, by their names in the folder."""
        if source.startswith("s3://") or is_hub(source):
            uris = [found.uri for found in self._store.list(source)]
            return _joined((uri.removeprefix(source), self.of(uri)) for uri in uris if uri.endswith(WANTED))
        root = local_path(source)
        files = sorted(path for path in root.rglob("*") if path.name.endswith(WANTED))
        return _joined((path.relative_to(root).as_posix(), self.of(str(path))) for path in files)

    def _of_file(self, path: Path) -> str:
        if not path.is_file():
            raise ObjectMissing(f"{path}: there is no such file")
        began, facts = time.time_ns(), _facts(path)
        if facts["size"] < REMEMBERED_BYTES:
            return _sha256(path)
        self._cache.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with (self._cache / f"content-{name}.json").open("a+") as record:
            # Workers of one pod share the cache: the first one reads the file, the others wait.
            fcntl.flock(record, fcntl.LOCK_EX)
            record.seek(0)
            text = record.read()
            known: dict[str, Any] = json.loads(text) if text.endswith("}") else {}
            if known.get("facts") == facts:
                return str(known["content"])
            content = _sha256(path)
            record.truncate(0)
            if began - max(facts["modified_ns"], facts["changed_ns"]) > SETTLED_NS and _facts(path) == facts:
                record.write(json.dumps({"file": str(path), "facts": facts, "content": content}))
            return content


def _facts(path: Path) -> dict[str, int]:
    """What the file system says; the time of change cannot be set back, as that of modification can."""
    found = path.stat()
    return {
        "size": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _joined(parts: Iterable[tuple[str, str]]) -> str:
    """One name for several contents; a single one is its own name."""
    named = list(parts)
    if len(named) == 1:
        return named[0][1]
    return f"sha256:{hashlib.sha256(json.dumps(named).encode()).hexdigest()}"
