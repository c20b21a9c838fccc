"""The result of a stage: one safetensors file under the model's published names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videotrain_api import layout
from videotrain_trainer.checkpoint.fragments import numel, pack
from videotrain_trainer.checkpoint.load import StoredCheckpoint, open_checkpoint, read_vectors
from videotrain_trainer.checkpoint.state import Quantity
from videotrain_trainer.setup import TrainingRun
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear

BATCH_ELEMENTS = 1 << 28
"""Parameters are read together up to so many elements (1 GiB)."""


def export_weights(run: TrainingRun) -> None:
    """Write the final weights from the last checkpoint; the moving average if one is kept. Collective.

    Rank 0 reads them back from the object store, so that neither the engine nor other ranks' memory is needed, and a
    process that died after its last checkpoint can be made up for by any other.
    """
    if run.context.world.rank == 0:
        found = open_checkpoint(run.store, run.prefix, run.state.step)
        dtype = torch.bfloat16 if run.objective.task.precision == "bf16" else torch.float32
        tensors = {name: values.to(dtype) for name, values in stored_weights(run.store, found)}
        tensors |= _buffers(run.engine.module, tensors)
        metadata = {"run": run.context.config.run, "step": str(run.state.step)}
        metadata |= run.objective.export_metadata(tensors)
        path = run.context.scratch / "model.safetensors"
        with disk_full_is_clear(path):
            save_file(tensors, path, metadata=metadata)
        run.store.put(layout.final_weights(run.prefix), path)
        path.unlink()
    run.peers.from_first(True)


def stored_weights(store: ObjectStore, found: StoredCheckpoint) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a checkpoint in float32: the moving average if there is one, else the weights.

    Raises:
        DamagedCheckpointError: bytes do not fit their checksum.
    """
    quantity: Quantity = "ema" if "ema" in found.index.quantities else "master"
    for names in _batches(found.index.shapes):
        pieces = pack((name, 0, numel(found.index.shapes[name])) for name in names)
        values = read_vectors(store, found, pieces, [quantity])[quantity]
        for piece in pieces:
            flat = values[piece.offset : piece.offset + piece.length]
            yield piece.parameter, flat.view(found.index.shapes[piece.parameter])


def _batches(shapes: dict[str, list[int]]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if batch and size + numel(shape) > BATCH_ELEMENTS:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += numel(shape)
    if batch:
        yield batch


def _buffers(module: nn.Module, parameters: Sequence[str] | dict[str, Tensor]) -> dict[str, Tensor]:
    """What a strict loader wants besides parameters."""
    state = module.state_dict()
    return {name: value.detach().cpu() for name, value in state.items() if name not in parameters}
