"""What is read and does not fit what was written: read again, and told so that two machines can compare it.

A wrong reading may be the fault of the machine that reads, of a connection, or of what is stored, and only the last is
seen alike by two machines. So a reading says what it found, and nothing is judged by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import ValidationError

from videotrain_api.storage.artifacts import SealedDocument
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer import checksums
from videotrain_trainer.checksums import checksum, sealed_json, unsealed_json
from videotrain_trainer.errors import ObjectMissing, TrainerError
from videotrain_trainer.storage import ObjectStore

MISSING: Final = "missing"

Value = TypeVar("Value")
Document = TypeVar("Document", bound=SealedDocument)


class DamagedCheckpointError(TrainerError):
    """A checkpoint is complete by its commit manifest, but what this machine reads does not fit it.

    Args:
        uri: the object.
        found: what was read, so that two machines can compare: a checksum, a size, or MISSING.
        problem: for people.
        start: first byte of the range that was read.
        stop: byte behind it; 0 if the object was read whole, or looked at only.
    """

    exit_code = ExitCode.CHECKPOINT

    def __init__(self, uri: str, found: str, problem: str, start: int = 0, stop: int = 0) -> None:
        super().__init__(f"{uri}: {problem}")
        self.uri, self.found, self.problem, self.start, self.stop = uri, found, problem, start, stop


def read_again(store: ObjectStore, read: Callable[[ObjectStore], Value]) -> Value:
    """What `read` gives; damage and missing objects are believed only when READINGS readings agree that there is some.

    Raises:
        DamagedCheckpointError: of the last reading.
        ObjectMissing: likewise.
    """
    return checksums.read_again(store, read, (DamagedCheckpointError, ObjectMissing))


def seal(document: SealedDocument) -> bytes:
    """The document as it is stored, with its checksum."""
    return sealed_json(json.loads(document.model_dump_json(by_alias=True, exclude={"crc32c"})))


def unseal(kind: type[Document], uri: str, data: bytes) -> Document:
    """A document that `seal` made.

    Raises:
        DamagedCheckpointError: it does not fit its checksum, or is none of this kind.
    """
    try:
        unsealed_json(data)
        return kind.model_validate_json(data)
    except ValidationError as error:
        told = error.errors()[0]
        where = ".".join(map(str, told["loc"]))
        raise DamagedCheckpointError(uri, checksum(data), f"no {kind.__name__}: {where}: {told['msg']}") from error
    except ValueError as error:
        raise DamagedCheckpointError(uri, checksum(data), f"{len(data)} bytes: {error}") from error
