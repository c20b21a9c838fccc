"""Which samples made it into the weights: segments in the object store and one hash over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine, OrderSegment
from videotrain_trainer.errors import DataError
from videotrain_trainer.storage import ObjectStore


def digest_line(line: OrderLine) -> bytes:
    """What the order hash is made of: `<step> <id> <id> ...`."""
    return f"{line.step} {' '.join(line.ids)}\n".encode()


def encode_segment(lines: Iterable[OrderLine]) -> bytes:
    """The lines as they are stored: one JSON document per line."""
    return b"".join(line.model_dump_json(by_alias=True).encode() + b"\n" for line in lines)


def read_segment(store: ObjectStore, segment: OrderSegment) -> list[OrderLine]:
    """The lines of a stored segment.

    Raises:
        DataError: it does not hold exactly its steps.
    """
    lines = [OrderLine.model_validate_json(text) for text in store.get(segment.uri).splitlines()]
    if [line.step for line in lines] != list(range(segment.first_step, segment.last_step + 1)):
        raise DataError(f"{segment.uri}: does not hold steps {segment.first_step} to {segment.last_step}, each once")
    return lines


class OrderLog:
    """Grows by one segment with every checkpoint. Used by one thread at a time.

    After a restart the hash is computed anew from the stored segments, because SHA-256 cannot be continued from its
    result; that happens with the first checkpoint, off the path of training.

    Args:
        store: object store.
        prefix: of the stage.
        resumed: manifest of the checkpoint that training went on from.
    """

    def __init__(self, store: ObjectStore, prefix: str, resumed: CheckpointManifest | None) -> None:
        self._store = store
        self._prefix = prefix
        self._resumed = resumed
        self._segments: list[OrderSegment] = list(resumed.order) if resumed else []
        self._hash: Any = None

    def append(self, lines: Sequence[OrderLine], generation: int) -> tuple[list[OrderSegment], str]:
        """Store the lines since the last checkpoint; all segments so far and the hash over their lines."""
        digest = self._digest()
        if lines:
            first, last = lines[0].step, lines[-1].step
            uri = layout.order_segment(self._prefix, first, last, generation)
            self._store.put(uri, encode_segment(lines))
            self._segments.append(OrderSegment(uri=uri, first_step=first, last_step=last, generation=generation))
            for line in lines:
                digest.update(digest_line(line))
        return list(self._segments), digest.hexdigest()

    def _digest(self) -> Any:
        if self._hash is None:
            self._hash = hashlib.sha256()
            for segment in self._segments:
                for line in read_segment(self._store, segment):
                    self._hash.update(digest_line(line))
            if self._resumed is not None and self._hash.hexdigest() != self._resumed.order_sha256:
                raise DataError(
                    f"{self._prefix}/order: the stored segments do not give the hash {self._resumed.order_sha256} "
                    f"of the checkpoint at step {self._resumed.step}; they were changed since"
                )
        return self._hash
