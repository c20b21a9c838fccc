"""How fast settings of a row really are, and what they need of a GPU: a few micro-batches of random samples, beside
which captions are encoded where training does so.

Shapes: B batch, N image tokens, L text tokens.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.cost.search import Choice
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.diffusion.flow_matching import FlowInputs
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.fp8 import check_task, use_fp8
from videotrain_trainer.networks.lora.base import adapt
from videotrain_trainer.networks.quantized import QuantizedLinear
from videotrain_trainer.parallel.activation import transformer_blocks
from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.parallel.context import ContextGroups
from videotrain_trainer.parallel.engine import Engine, engine_options
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.text.random_encoders import TextBeside
from videotrain_trainer.training.shared_loss import micro_batch_loss
from videotrain_trainer.training.timing import Clock, DeviceClock, HostClock, take_memory_peak
from videotrain_trainer.worker.stage_context import World

FIRST_VALUES = 0.02
"""Size of the random weights: as they begin."""


@dataclass(frozen=True)
class Measured:
    """One setting of a row."""

    choice: Choice
    micro_batch_seconds: float | None = None
    """Forward and backward pass; None if memory ran out."""
    update_seconds: float = 0.0
    """The end of a step: what is left of reductions, and the optimizer."""
    peak_bytes: int = 0
    """Most that was held, of all ranks."""
    text: str = "stored"
    """train.text: `online` means that captions were encoded beside."""

    def step_seconds(self, gpus: int) -> float | None:
        """Of a step in a world of so many GPUs, with the update as it was measured here; None if memory ran out."""
        if self.micro_batch_seconds is None:
            return None
        setting = self.choice.setting
        rounds = -(-setting.micro_batches // max(1, gpus // setting.context_parallel))
        return rounds * self.micro_batch_seconds + self.update_seconds


class Tuner:
    """A stage's model under one engine, of which settings are measured one after another. Collective.

    Args:
        table: the stage.
        layout: the engine, and what is common to all rows.
        world: this process.
        degrees: of context parallelism that will be asked for; each divides the world.
    """

    def __init__(self, table: TrainMemory, layout: ParallelLayout, world: World, degrees: set[int]) -> None:
        self._table, self._layout, self._world = table, layout, world
        gpus_per_node = min(table.pool.gpus_per_node, world.size)
        self._groups = ContextGroups(world.rank, degrees, gpus_per_node, table.shape.heads)
        self._peers = WorldPeers()
        self._clock: Clock = DeviceClock(world.device) if world.device.type == "cuda" else HostClock()
        spec = table.run.spec.text_encoder
        self._text = TextBeside(spec, world.device) if table.task.text == "online" else None
        self._build()

    def _build(self) -> None:
        spec, task, device = self._table.run.spec, self._table.task, self._world.device
        check_task(task, device)
        with torch.device("meta"):
            module = build_transformer(
                complete_transformer(spec.model), complete_autoencoder(spec.autoencoder), spec.text_encoder
            )
            if task.lora is not None:
                adapt(module, task.lora)
        if task.fp8:
            use_fp8(module)
        compiled = task.compile == "on" or (task.compile == "auto" and device.type == "cuda")
        self._blocks = transformer_blocks(module, self._layout, compiled)
        self._engine = shard_model(module, engine_options(task, self._layout), self._world)
        _fill(module, self._engine)

    def measure(self, choice: Choice, micro_batches: int) -> Measured:
        """Train on so many micro-batches after one that warms up. Every rank must ask for the same.

        Where memory runs out on one rank, others may wait for it: all have micro-batches of one size, so it runs out on
        all or none.
        """
        try:
            found = self._timed(choice, micro_batches)
        except torch.OutOfMemoryError:
            found = Measured(choice, text=self._table.task.text)
        if any(self._peers.any([found.micro_batch_seconds is None])):
            # What the engine holds of a half-finished backward pass is of no use.
            del self._engine, self._blocks
            gc.collect()
            if self._world.device.type == "cuda":
                torch.cuda.empty_cache()
            self._build()
            return Measured(choice, text=self._table.task.text)
        return self._slowest(found)

    def _timed(self, choice: Choice, micro_batches: int) -> Measured:
        setting, clock = choice.setting, self._clock
        self._blocks.recompute(setting.recompute)
        inputs, group = self._inputs(choice), self._groups.of(setting.context_parallel)
        take_memory_peak(self._world.device)

        def run(last: bool) -> None:
            if self._text is not None:
                self._text.encode(setting.batch_size)
            self._engine.backward(micro_batch_loss(self._engine, inputs, group), last)

        run(True)
        self._engine.step(0.0)
        began = clock.mark()
        for number in range(micro_batches):
            run(number == micro_batches - 1)
        if self._text is not None:
            self._text.wait()
        trained = clock.mark()
        self._engine.step(0.0)
        ended = clock.mark()
        clock.wait(ended)
        seconds = clock.microseconds(began, trained) / 1e6 / micro_batches
        update = clock.microseconds(trained, ended) / 1e6
        return Measured(choice, seconds, update, take_memory_peak(self._world.device), self._table.task.text)

    def _slowest(self, found: Measured) -> Measured:
        """The numbers of the rank that has the largest."""
        table = self._peers.table([found.micro_batch_seconds or 0.0, found.update_seconds, found.peak_bytes])
        seconds, update, peak = table.amax(dim=0).tolist()
        return replace(found, micro_batch_seconds=seconds, update_seconds=update, peak_bytes=round(peak))

    def _inputs(self, choice: Choice) -> FlowInputs:
        """Random samples of the row's longest clip, the same on all ranks: as many as one group has at a time."""
        shape, batch, text = self._table.shape, choice.setting.batch_size, self._table.run.spec.text_encoder.max_tokens
        image, frames = self._table.largest_clip(choice.bucket)
        device, generator = self._world.device, torch.Generator().manual_seed(0)

        def drawn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device)

        def ids(tokens: int) -> Tensor:
            return torch.arange(tokens, device=device).float()[None, :, None].expand(batch, -1, 3).contiguous()

        return FlowInputs(
            x_t_BNI=drawn(batch, image, shape.patch_channels),
            img_ids_BN3=ids(image),
            txt_BLD=drawn(batch, text, shape.context),
            txt_ids_BL3=torch.zeros(batch, text, 3, device=device),
            timesteps_B=torch.full((batch,), 0.5, device=device),
            pooled_BP=drawn(batch, shape.pooled),
            cond_BNE=drawn(batch, image, shape.condition_channels) if shape.condition_channels else None,
            target_BNI=drawn(batch, image, shape.patch_channels),
            kinds=["t2v"] * batch,
            given_BT=torch.zeros(batch, frames, dtype=torch.bool, device=device),
        )


@torch.no_grad()
def _fill(module: nn.Module, engine: Engine) -> None:
    """Random weights, also where an engine or an adapter holds them in another form."""
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    for values in (*engine.shards.masters, *frozen):
        values.normal_(std=FIRST_VALUES)
    for layer in (part for part in module.modules() if isinstance(part, QuantizedLinear)):
        weight_OF = torch.empty(layer.weight.shape, device=layer.weight.device)
        layer.hold(weight_OF.normal_(std=FIRST_VALUES), layer.weight_scale.dtype)
    engine.refresh()


def described(found: Measured, gpus: int) -> dict[str, Any]:
    """A measurement in plain data.

    Args:
        found: of one setting.
        gpus: of the world that steps are told for.
    """
    setting, memory = found.choice.setting, found.choice.memory
    seconds = found.step_seconds(gpus)
    samples = setting.batch_size * setting.micro_batches
    return {
        "row": memory.row,
        **setting.row_fields(),
        "text": found.text,
        "outOfMemory": seconds is None,
        "microBatchSeconds": found.micro_batch_seconds,
        "updateSeconds": found.update_seconds,
        "peakBytes": found.peak_bytes,
        "modelledBytes": memory.total,
        "samplesPerSecond": None if seconds is None else samples / seconds,
        "modelledSamplesPerSecond": found.choice.samples_per_second,
    }
