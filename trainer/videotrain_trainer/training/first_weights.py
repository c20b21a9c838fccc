"""First weights: every rank reads or draws the elements that it holds, and all together verify what was read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Final

import torch
from pydantic import TypeAdapter

from videotrain_trainer.checkpoint.load import PART_ELEMENTS, READERS
from videotrain_trainer.checksums import READINGS, joined_checksum
from videotrain_trainer.errors import DamagedObject
from videotrain_trainer.networks.weights.fragments import Fragments, Unverified
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sharded_state import Piece, ShardedState, in_parts, packed_length

_PARTS: Final = TypeAdapter(list[Unverified])
_NAMES: Final = TypeAdapter(list[str])


def fill_first_weights(fragments: Fragments, state: ShardedState, peers: WorldPeers) -> None:
    """Give the master weights of `state`, and its moving average, their first values. Collective.

    Raises:
        DamagedObject: tensors do not fit the checksums that their file carries, in several readings.
    """
    damaged: list[str] = []
    for _ in range(READINGS):
        _read(fragments, state)
        damaged = peers.from_first(_NAMES, _damaged(fragments, peers.to_first(_PARTS, fragments.unverified())))
        if not damaged:
            return
    raise DamagedObject(
        f"initial weights: {', '.join(damaged[:5])} do not fit the checksums of their file, as {READINGS} readings of "
        "all ranks together say; see initFrom and spec.model.weights, and make that file again"
    )


def _read(fragments: Fragments, state: ShardedState) -> None:
    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
        for start, pieces in in_parts(state.held, PART_ELEMENTS):
            values = torch.empty(packed_length(pieces), dtype=torch.float32)

            def fill(piece: Piece, into: torch.Tensor = values) -> None:
                into[piece.offset : piece.offset + piece.length] = fragments.read(
                    piece.parameter, piece.start, piece.length
                )

            list(pool.map(fill, pieces))
            state.write("master", values, start)
            if "ema" in state.quantities:
                state.write("ema", values, start)


def _damaged(fragments: Fragments, told: list[list[Unverified]]) -> list[str]:
    """Parameters whose parts, read by whomever, do not make what their file says; on rank 0 alone."""
    # Where several ranks hold the same part, it counts once.
    parts = sorted({part for found in told for part in found})
    return [
        name
        for name, found in groupby(parts, key=lambda part: part.parameter)
        if joined_checksum((part.crc32c, part.length) for part in found) != fragments.checksum_of(name)
    ]
