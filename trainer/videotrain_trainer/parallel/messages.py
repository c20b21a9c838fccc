"""What ranks tell each other besides tensors: JSON, checked by whoever reads it.

torch's object collectives pickle, and whoever sends a pickle runs code where it is read. So values travel as JSON of a
declared type, of a length that is told before anything is allocated for it.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from videotrain_trainer.errors import TrainerError

Value = TypeVar("Value")

MOST_BYTES: Final = 1 << 30
"""Of one message. The longest is a checkpoint's index: under ZeRO stage 3 it names every parameter once per rank."""
MOST_GATHERED: Final = 1 << 32
"""Bytes that rank 0 holds of all ranks at once, each padded to the longest. The longest are the samples of all steps
since the last checkpoint."""
SHOWN: Final = 200
"""Characters that are told of a message that does not fit."""


def encode(kind: TypeAdapter[Any], value: Any) -> Tensor:
    """(bytes,) uint8: the value as JSON."""
    return torch.frombuffer(bytearray(kind.dump_json(value, by_alias=True)), dtype=torch.uint8)


def decode(kind: TypeAdapter[Value], message: Tensor, rank: int) -> Value:
    """The value of a message; nothing of it is converted from another type, and it nests no deeper than 200 levels.

    Args:
        kind: what is expected.
        message: (bytes,) uint8.
        rank: who sent it, for the error.

    Raises:
        TrainerError: it is not JSON of this type.
    """
    try:
        return kind.validate_json(message.numpy().tobytes(), strict=True)
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, told["loc"]))
        problem = ascii(f"{where}: {told['msg']}" if where else told["msg"])[:SHOWN]
        raise TrainerError(
            f"rank {rank} sent {message.numel()} bytes that are not what the world agrees on: {problem}. All worker "
            "pods of a run need the same trainer image; if they have it, that worker's memory or network is damaged, "
            "or a stranger has got into the world"
        ) from None


def check_length(length: int, rank: int, ranks: int = 1) -> None:
    """Refuse a length before memory is taken for it.

    Args:
        length: bytes, as another rank tells them.
        rank: who tells it.
        ranks: how many messages of this length are held at once.

    Raises:
        TrainerError: nobody sends so much.
    """
    limit = min(MOST_BYTES, MOST_GATHERED // ranks)
    if not 0 < length <= limit:
        raise TrainerError(
            f"rank {rank} announces a message of {length} bytes; 1 to {limit} are possible in a world that gathers "
            f"{ranks} at once. If checkpoints are far apart, save more often (spec.checkpoint.everySteps)"
        )
