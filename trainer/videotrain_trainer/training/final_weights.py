"""The result of a stage: one safetensors file under the model's published names, written by all ranks together.

The file is cut into parts of equal size, whatever tensors they hold. Ranks take them in turn, read what is in them from
the last checkpoint and store them; so each holds a part at a time, and the result is never a file of one machine. The
checksums of the tensors follow from those of their parts, so the first part, with the header, comes last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from videotrain_api.storage import layout
from videotrain_trainer.assembled_object import PART_BYTES, AssembledObject, StoredPart
from videotrain_trainer.checkpoint.damage import read_again
from videotrain_trainer.checkpoint.load import StoredCheckpoint, open_checkpoint
from videotrain_trainer.checksums import checksum, joined_checksum
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.lora.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_files, adapter_metadata
from videotrain_trainer.networks.lora.from_diffusers import DIFFUSERS_FILE
from videotrain_trainer.networks.lora.layers import LoraConfig, is_adapter, lora_config
from videotrain_trainer.networks.lora.to_diffusers import to_diffusers
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Planned, planned_order, weights_bytes
from videotrain_trainer.networks.weights.configuration import metadata_of
from videotrain_trainer.networks.weights.loading import model_shapes
from videotrain_trainer.networks.weights.seal import SEAL, Sealed, seal_of, unset_seal
from videotrain_trainer.networks.weights.writer import file_header
from videotrain_trainer.parallel.engine import compute_dtype
from videotrain_trainer.training.final_tensors import FinalTensors, MergedTensors, StoredTensors
from videotrain_trainer.training.setup import TrainingRun
from videotrain_trainer.training.step import HasBase

log = logging.getLogger(__name__)

_FOUND: Final = TypeAdapter(StoredCheckpoint)
_METADATA: Final = TypeAdapter(dict[str, str])
_UPLOAD: Final = TypeAdapter(str)


class _Run(NamedTuple):
    """Bytes of a tensor that a part of the file holds."""

    tensor: str
    start: int
    """First one within the tensor."""
    length: int
    crc32c: str


Told = list[tuple[list[StoredPart], list[_Run]]]
"""Of each rank, the parts that it has stored, and what is in them."""
_DONE: Final = TypeAdapter(tuple[list[StoredPart], list[_Run]])


def export_weights(run: TrainingRun) -> None:
    """Write the final weights from the last checkpoint; the moving average if one is kept. Collective.

    They are read back from the object store, so that no engine's memory is needed, and a process that died after its
    last checkpoint can be made up for by any other.
    """
    tensors = _tensors(run)
    metadata: dict[str, str] | None = None
    if run.context.world.rank == 0:
        metadata = {"run": run.context.config.run, "step": str(run.state.step), **metadata_of(run.objective.module)}
        metadata |= run.objective.export_metadata(tensors)
    metadata = run.peers.from_first(_METADATA, metadata)
    _File(tensors, metadata).write(run, layout.final_weights(run.prefix))


def _tensors(run: TrainingRun) -> FinalTensors:
    """What the file will hold, none of it read yet. Collective; an adapter is stored in PEFT's layout on the way."""
    found = None
    if run.context.world.rank == 0:
        found = read_again(run.store, lambda source: open_checkpoint(source, run.prefix, run.state.step))
    found = run.peers.from_first(_FOUND, found)
    dtype = compute_dtype(run.objective.task.precision)
    stored = StoredTensors(run.store, found, dtype)
    base = run.objective.base if isinstance(run.objective, HasBase) else None
    if base is None:
        return stored.with_buffers(_buffers(run.engine.module, stored.shapes))
    task = run.context.config.stage.train
    if task is None or task.lora is None:
        raise ConfigError("only a train stage with train.lora has an adapter")
    config = lora_config(task.lora)
    adapter = {name: stored.float(name) for name in stored.shapes}
    if run.context.world.rank == 0:
        _store_adapter(run, config, adapter)
    return MergedTensors(model_shapes(run.objective.module), base, adapter, config.scale, dtype)


def _store_adapter(run: TrainingRun, config: LoraConfig, adapter: Mapping[str, Tensor]) -> None:
    """The adapter alone, in PEFT's layout and, where diffusers' class computes such a model, under its names."""
    state, fields = adapter_files(config, adapter, run.context.config.paths.initial_weights)
    folder = layout.final_adapter(run.prefix)
    run.store.put(f"{folder}/{ADAPTER_WEIGHTS}", weights_bytes(state, adapter_metadata(config)))
    run.store.put(f"{folder}/{ADAPTER_CONFIG}", json.dumps(fields, indent=2).encode())
    module = run.objective.module
    if not isinstance(module, MMDiT):
        return
    try:
        named, settings = to_diffusers(module.config, config, adapter)
    except ConfigError as error:
        log.warning("the adapter is stored in PEFT's layout alone: %s", error)
        return
    run.store.put(f"{folder}/{DIFFUSERS_FILE}", weights_bytes(named, settings))


def _buffers(module: nn.Module, parameters: Sequence[str] | dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What a strict loader wants besides parameters."""
    state = module.state_dict()
    return {
        name: value.detach().cpu() for name, value in state.items() if name not in parameters and not is_adapter(name)
    }


class _File:
    """The file as it will be, and its parts.

    Args:
        tensors: what it holds.
        metadata: its free text fields.
    """

    def __init__(self, tensors: FinalTensors, metadata: dict[str, str]) -> None:
        self._tensors, self._metadata = tensors, metadata
        self._plan = planned_order(
            {
                name: torch.empty(shape, dtype=tensors.dtype_of(name), device="meta")
                for name, shape in tensors.shapes.items()
            }
        )
        self._begin = len(self._header(unset_seal(len(self._plan))))
        self.size = self._begin + sum(planned.length for planned in self._plan)
        self.parts = -(-self.size // PART_BYTES)

    def write(self, run: TrainingRun, uri: str) -> None:
        """Store the file. Collective; tells after every round of parts that it gets on."""
        rank, size = run.context.world.rank, run.context.world.size
        upload = AssembledObject.begin(run.store, uri).upload if rank == 0 and self.parts > 1 else ""
        target = AssembledObject(run.store, uri, run.peers.from_first(_UPLOAD, upload))
        stored: list[StoredPart] = []
        runs: list[_Run] = []
        for first in range(1, max(2, self.parts), size):
            number = first + rank
            if number < self.parts:
                data, found = self._content(number)
                stored.append(target.put(number, data))
                runs += found
            run.peers.any([True])
            run.context.reporter.phase("export", min(first + size, self.parts) * PART_BYTES, self.parts * PART_BYTES)
        told = run.peers.to_first(_DONE, (stored, runs))
        if rank == 0:
            self._finish(run, target, told)
        run.peers.wait_for_first()

    def _finish(
        self, run: TrainingRun, target: AssembledObject, told: list[tuple[list[StoredPart], list[_Run]]]
    ) -> None:
        content, runs = self._content(0)
        found = sorted([*runs, *(one for _, found in told for one in found)])
        parts: dict[str, list[tuple[str, int]]] = {planned.name: [] for planned in self._plan}
        for one in found:
            parts[one.tensor].append((one.crc32c, one.length))
        sealed = {p.name: Sealed(p.dtype, p.shape, joined_checksum(parts[p.name])) for p in self._plan}
        data = self._header(seal_of(sealed, self._metadata)) + content
        if self.parts == 1:
            run.store.put(target.uri, data)
            return
        target.finish([target.put(0, data), *(part for stored, _ in told for part in stored)])

    def _header(self, seal: str) -> bytes:
        return file_header(self._plan, {**self._metadata, SEAL: seal})

    def _content(self, number: int) -> tuple[bytes, list[_Run]]:
        """The bytes of tensors in a part, without the header in the first one."""
        low, high = max(0, number * PART_BYTES - self._begin), (number + 1) * PART_BYTES - self._begin
        wanted: list[tuple[Planned, int, int]] = []
        offset = 0
        for planned in self._plan:
            start, stop = max(low, offset) - offset, min(high, offset + planned.length) - offset
            if start < stop:
                wanted.append((planned, start, stop))
            offset += planned.length
        # Parts begin at multiples of 8 bytes and wide data types come first, so no element is cut in two.
        items = [(p.name, start // p.dtype.itemsize, (stop - start) // p.dtype.itemsize) for p, start, stop in wanted]
        values = [_bytes(value) for value in self._tensors.read(items)]
        runs = [
            _Run(p.name, start, stop - start, checksum(v)) for (p, start, stop), v in zip(wanted, values, strict=True)
        ]
        return b"".join(values), runs


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().view(torch.uint8).numpy().tobytes()
