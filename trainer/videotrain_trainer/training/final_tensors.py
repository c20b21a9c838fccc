"""The tensors of a stage's result, read and merged where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from videotrain_trainer.checkpoint.load import StoredCheckpoint, read_vectors
from videotrain_trainer.networks.lora.layers import merged
from videotrain_trainer.networks.weights.fragments import Fragments, whole
from videotrain_trainer.reconstruction.joint_engine import without_discriminator
from videotrain_trainer.sharded_state import Quantity, numel, pack
from videotrain_trainer.storage import ObjectStore

Items = Sequence[tuple[str, int, int]]
"""Tensor, first element and number of elements."""


class FinalTensors(Mapping[str, Tensor]):
    """Tensors by name; as a mapping each one is read whole when it is asked for.

    Args:
        shapes: of all of them.
        dtype: of those that are not buffers.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.shapes, self._dtype = dict(shapes), dtype
        self._buffers: dict[str, Tensor] = {}

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> FinalTensors:
        """Take buffers, too, which keep their data types."""
        self._buffers |= buffers
        self.shapes |= {name: tuple(value.shape) for name, value in buffers.items()}
        return self

    def dtype_of(self, name: str) -> torch.dtype:
        """Data type in the file."""
        return self._buffers[name].dtype if name in self._buffers else self._dtype

    def read(self, items: Items) -> list[Tensor]:
        """(elements,) on the CPU, each in its data type."""
        found = iter(self._read([item for item in items if item[0] not in self._buffers]))
        return [
            self._buffers[name].reshape(-1)[start : start + length] if name in self._buffers else next(found)
            for name, start, length in items
        ]

    def _read(self, items: Items) -> list[Tensor]:
        raise NotImplementedError

    def __getitem__(self, name: str) -> Tensor:
        return self.read([(name, 0, numel(self.shapes[name]))])[0].reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class StoredTensors(FinalTensors):
    """The model of a checkpoint: the moving average if there is one, else the weights.

    A discriminator that is in the checkpoint is left out: it belongs to the training.

    Args:
        store: object store.
        found: the checkpoint.
        dtype: to be cast to.
    """

    def __init__(self, store: ObjectStore, found: StoredCheckpoint, dtype: torch.dtype) -> None:
        shapes = without_discriminator(found.index.shapes)
        super().__init__({name: tuple(shape) for name, shape in shapes.items()}, dtype)
        self._store, self._found = store, found
        self._quantity: Quantity = "ema" if "ema" in found.index.quantities else "master"

    def float(self, name: str) -> Tensor:
        """One tensor in float32."""
        return self._values([(name, 0, numel(self.shapes[name]))])[0].reshape(self.shapes[name])

    def _read(self, items: Items) -> list[Tensor]:
        return [value.to(self._dtype) for value in self._values(items)]

    def _values(self, items: Items) -> list[Tensor]:
        pieces = pack(items)
        values = read_vectors(self._store, self._found, pieces, [self._quantity])[self._quantity]
        return [values[piece.offset : piece.offset + piece.length] for piece in pieces]


class MergedTensors(FinalTensors):
    """A model with its adapter merged in, under the model's own names.

    Args:
        shapes: of the model without its adapter.
        base: its frozen weights.
        adapter: its tensors by the module's names, float32.
        scale: of the addition.
        dtype: that the stage computed in, and of the file.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        base: Fragments,
        adapter: Mapping[str, Tensor],
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(shapes, dtype)
        self._base, self._adapter, self._scale = base, adapter, scale
        self._held: tuple[str, Tensor] | None = None

    def _read(self, items: Items) -> list[Tensor]:
        return [self._merged(name).reshape(-1)[start : start + length] for name, start, length in items]

    def _merged(self, name: str) -> Tensor:
        """One tensor; the last one is held, for the next part of the file begins in it."""
        if self._held is None or self._held[0] != name:
            value, layer = whole(self._base, name, self.shapes[name]).to(self._dtype), name.removesuffix(".weight")
            a_RF = self._adapter.get(f"{layer}.lora_A.weight") if layer != name else None
            if a_RF is not None:
                value = merged(value, a_RF, self._adapter[f"{layer}.lora_B.weight"], self._scale)
            self._held = name, value
        return self._held[1]
