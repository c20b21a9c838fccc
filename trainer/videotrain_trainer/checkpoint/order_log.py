"""Which samples made it into the weights: segments in the object store and one hash over all of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine, OrderSegment
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError, read_again
from videotrain_trainer.checksums import checksum
from videotrain_trainer.errors import ObjectMissing, TrainerError
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter


def digest_line(line: OrderLine) -> bytes:
    """What the order hash is made of: `<step> <id> <id> ...`."""
    return f"{line.step} {' '.join(line.ids)}\n".encode()


def encode_segment(lines: Iterable[OrderLine]) -> bytes:
    """The lines as they are stored: one JSON document per line."""
    return b"".join(line.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n" for line in lines)


def read_segment(store: ObjectStore, segment: OrderSegment) -> list[OrderLine]:
    """The lines of a stored segment.

    Raises:
        OrderUnreadableError: it is missing, does not fit its checksum in several readings, or lacks steps.
    """

    def read(source: ObjectStore) -> bytes:
        data = source.get(segment.uri)
        if checksum(data) != segment.crc32c:
            raise DamagedCheckpointError(segment.uri, checksum(data), "does not fit its checksum")
        return data

    try:
        lines = [OrderLine.model_validate_json(text) for text in read_again(store, read).splitlines()]
    except (DamagedCheckpointError, ObjectMissing) as error:
        raise OrderUnreadableError(str(error)) from error
    except ValidationError as error:
        raise OrderUnreadableError(f"{segment.uri}: {error.errors()[0]['msg']}") from error
    if [line.step for line in lines] != list(range(segment.first_step, segment.last_step + 1)):
        raise OrderUnreadableError(
            f"{segment.uri}: does not hold steps {segment.first_step} to {segment.last_step}, each once"
        )
    return lines


class OrderUnreadableError(TrainerError):
    """The order of samples that was stored cannot be read back; weights do not depend on it."""


class OrderLog:
    """Grows by one segment with every checkpoint. Used by one thread at a time.

    After a restart the hash is computed anew from the stored segments, because SHA-256 cannot be continued from its
    result; that happens with the first checkpoint, off the path of training. The log proves which samples were
    trained on. What cannot be read back or written of it is told, and keeps no checkpoint from being made.

    Args:
        store: object store.
        prefix: of the stage.
        resumed: manifest of the checkpoint that training went on from.
        reporter: told what cannot be read or written.
        unwritten: steps behind that checkpoint which training goes on from as well.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        resumed: CheckpointManifest | None,
        reporter: StageReporter,
        unwritten: Sequence[OrderLine] = (),
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._resumed = resumed
        self._reporter = reporter
        self._segments: list[OrderSegment] = list(resumed.order) if resumed else []
        self._unwritten: list[OrderLine] = list(unwritten)
        counted = resumed is None or bool(resumed.source_samples) or not resumed.order
        # A checkpoint of a version that did not count: told once the stored lines were read, never from here on only.
        self._by_source: Counter[str] | None = None
        if counted:
            self._by_source = Counter(resumed.source_samples if resumed else {})
        self._count(self._unwritten)
        self._hash: Any = None

    def append(self, lines: Sequence[OrderLine], generation: int) -> tuple[list[OrderSegment], str]:
        """Store the lines since the last checkpoint.

        Returns:
            All segments so far, and the hash over their lines; empty if a segment before cannot be read back.
        """
        try:
            digest = self._digest()
        except TrainerError as error:
            # Asked again with the next checkpoint.
            self._reporter.housekeeping("order", error)
            digest = None
        self._unwritten += lines
        self._count(lines)
        if self._unwritten:
            self._write(generation)
        if digest is None:
            return list(self._segments), ""
        for line in lines:
            digest.update(digest_line(line))
        return list(self._segments), digest.hexdigest()

    @property
    def source_samples(self) -> dict[str, int]:
        """Samples so far by source; empty if they are not told apart, or what came before could not be read back."""
        return dict(sorted((self._by_source or {}).items()))

    def _count(self, lines: Iterable[OrderLine]) -> None:
        if self._by_source is not None:
            _count_into(self._by_source, lines)

    def _write(self, generation: int) -> None:
        first, last = self._unwritten[0].step, self._unwritten[-1].step
        uri, data = layout.order_segment(self._prefix, first, last, generation), encode_segment(self._unwritten)
        try:
            self._store.put_once(uri, data)
        except TrainerError as error:
            # The lines go into the next segment.
            self._reporter.housekeeping("order", error)
            return
        self._segments.append(
            OrderSegment(uri=uri, first_step=first, last_step=last, generation=generation, crc32c=checksum(data))
        )
        self._unwritten = []

    def _digest(self) -> Any:
        """Of all lines before those that are appended next."""
        if self._hash is None:
            digest, by_source = hashlib.sha256(), Counter[str]()
            for segment in self._segments:
                lines = read_segment(self._store, segment)
                _count_into(by_source, lines)
                for line in lines:
                    digest.update(digest_line(line))
                if self._resumed is not None and self._resumed.order and segment == self._resumed.order[-1]:
                    self._compare(digest.hexdigest(), self._resumed)
            for line in self._unwritten:
                digest.update(digest_line(line))
            _count_into(by_source, self._unwritten)
            self._hash, self._by_source = digest, by_source
        return self._hash

    def _compare(self, digest: str, resumed: CheckpointManifest) -> None:
        if resumed.order_sha256 not in ("", digest):
            raise OrderUnreadableError(
                f"{self._prefix}/order: the stored segments do not give the hash {resumed.order_sha256} of the "
                f"checkpoint at step {resumed.step}; they were changed since"
            )


def _count_into(by_source: Counter[str], lines: Iterable[OrderLine]) -> None:
    for line in lines:
        by_source.update({source.name: len(source.places) for source in line.sources or ()})
