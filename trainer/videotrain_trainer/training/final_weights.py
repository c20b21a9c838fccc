"""The result of a stage: one safetensors file under the model's published names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from videotrain_api.storage import layout
from videotrain_trainer.checkpoint.damage import read_again
from videotrain_trainer.checkpoint.load import StoredCheckpoint, open_checkpoint, read_vectors
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.lora.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_files, adapter_metadata
from videotrain_trainer.networks.lora.layers import adapted, is_adapter, lora_config, merged_state
from videotrain_trainer.networks.weights import Destination, planned_order, weights_bytes, write_weights
from videotrain_trainer.networks.weights.configuration import metadata_of
from videotrain_trainer.reconstruction.joint_engine import without_discriminator
from videotrain_trainer.sharded_state import Quantity, numel, pack
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.setup import TrainingRun

BATCH_ELEMENTS = 1 << 28
"""Parameters are read together up to so many elements (1 GiB)."""


def export_weights(run: TrainingRun) -> None:
    """Write the final weights from the last checkpoint; the moving average if one is kept. Collective.

    Rank 0 reads them back from the object store, so that neither the engine nor other ranks' memory is needed, and a
    process that died after its last checkpoint can be made up for by any other.
    """
    if run.context.world.rank == 0:
        found = read_again(run.store, lambda source: open_checkpoint(source, run.prefix, run.state.step))
        dtype = torch.bfloat16 if run.objective.task.precision == "bf16" else torch.float32
        stored = stored_weights(run.store, found)
        if adapted(run.engine.module):
            stored = _merged(run, dict(stored))
        tensors = {name: values.to(dtype) for name, values in stored}
        tensors |= _buffers(run.engine.module, tensors)
        metadata = {"run": run.context.config.run, "step": str(run.state.step), **metadata_of(run.objective.module)}
        metadata |= run.objective.export_metadata(tensors)
        path = run.context.scratch / "model.safetensors"
        write_weights(Destination(target=path, sealed=True), planned_order(tensors), tensors.__getitem__, metadata)
        run.store.put(layout.final_weights(run.prefix), path)
        path.unlink()
    run.peers.wait_for_first()


def _merged(run: TrainingRun, adapter: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Store an adapter in PEFT's layout; the model with it merged in, under the model's own names."""
    paths, task = run.context.config.paths, run.context.config.stage.train
    if task is None or task.lora is None:
        raise ConfigError("only a train stage with train.lora has an adapter")
    config = lora_config(task.lora)
    state, fields = adapter_files(config, adapter, paths.initial_weights)
    folder = layout.final_adapter(run.prefix)
    run.store.put(f"{folder}/{ADAPTER_WEIGHTS}", weights_bytes(state, adapter_metadata(config)))
    run.store.put(f"{folder}/{ADAPTER_CONFIG}", json.dumps(fields, indent=2).encode())
    return ((name, value.cpu()) for name, value in merged_state(run.engine.module.state_dict(), adapter, config.scale))


def stored_weights(store: ObjectStore, found: StoredCheckpoint) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a checkpoint's model in float32: the moving average if there is one, else the weights.

    A discriminator that is in the checkpoint is left out: it belongs to the training.

    Raises:
        DamagedCheckpointError: bytes do not fit their checksum.
    """
    quantity: Quantity = "ema" if "ema" in found.index.quantities else "master"
    for names in _batches(without_discriminator(found.index.shapes)):
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
    return {
        name: value.detach().cpu() for name, value in state.items() if name not in parameters and not is_adapter(name)
    }
