"""What the rows of a stage need of a GPU's memory: from a manifest to the numbers of `memory`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from videotrain_api.config import aspect, presets
from videotrain_api.cost import flops
from videotrain_api.cost.flops import MmditShape
from videotrain_api.cost.memory import GpuMemory, MicroBatch, gpu_memory
from videotrain_api.cost.model_state import ModelState, Parameters, Sharding, model_state
from videotrain_api.cost.text_encoding import TEXTS_BESIDE, text_bytes, text_work
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import (
    Bucket,
    EngineName,
    Offload,
    ParallelLayout,
    Recompute,
    Stage,
    TrainTask,
    node_counts,
    ulysses_degree,
)
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_of
from videotrain_api.schema import ApiModel

GIGA = 10**9


@dataclass(frozen=True, kw_only=True)
class RowSetting:
    """How a row of a bucket table is trained: everything that its memory depends on beside model and world."""

    batch_size: int
    micro_batches: int
    context_parallel: int
    recompute: Recompute
    recomputed: tuple[int | None, int | None]
    """Blocks of each kind that `full` is for; None for all."""
    engine: EngineName
    zero_stage: int
    offload: Offload
    compiled: bool

    def row_fields(self) -> dict[str, Any]:
        """What a row of a bucket table says of it, by the manifest's names."""
        return {
            "batchSize": self.batch_size,
            "microBatches": self.micro_batches,
            "contextParallel": self.context_parallel,
            "recompute": self.recompute,
        }


class RowMemory(ApiModel):
    """What a row of a bucket table needs of each GPU."""

    path: str
    """Of the row in the manifest."""
    row: str
    """Such as `256px 5-33f`."""
    gpus: int
    """Of the world."""
    engine: EngineName
    tokens: int
    """Of one micro-batch on one GPU, its longest clip in the shape that has most."""
    memory: GpuMemory
    total: int
    """Bytes."""
    limit: int
    """Bytes that there are: pool.gpuMemoryGigabytes."""

    @property
    def fits(self) -> bool:
        """Whether the GPU has as much."""
        return self.total <= self.limit


def limit_of(run: VideoTrainingRun, stage: Stage) -> int:
    """Bytes of one GPU of a stage."""
    return round(pool_of(run, stage).gpu_memory_gigabytes * GIGA)


@dataclass(frozen=True)
class TrainMemory:
    """The rows of a train stage of a run whose architectures are complete.

    Args:
        run: the manifest.
        index: of one of its train stages.
    """

    run: VideoTrainingRun
    index: int

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.run.spec.stages[self.index]

    @property
    def pool(self) -> Pool:
        """Its nodes."""
        return pool_of(self.run, self.stage)

    @property
    def task(self) -> TrainTask:
        """The stage's task."""
        assert self.stage.train is not None, "made for train stages"
        return self.stage.train

    @cached_property
    def shape(self) -> MmditShape:
        """Sizes of the transformer."""
        spec = self.run.spec
        model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
        return flops.mmdit_shape(model, autoencoder, spec.text_encoder)

    @property
    def limit(self) -> int:
        """Bytes of one GPU."""
        return limit_of(self.run, self.stage)

    def setting(self, row: Bucket, layout: ParallelLayout | None = None) -> RowSetting:
        """How a row is trained under a layout, the manifest's if None."""
        layout = layout or self.task.parallel
        return RowSetting(
            batch_size=row.batch_size,
            micro_batches=layout.micro_batches_of(row),
            context_parallel=layout.degree_of(row),
            recompute=layout.recompute_of(row),
            recomputed=(layout.checkpoint_double_blocks, layout.checkpoint_single_blocks),
            engine=layout.engine,
            zero_stage=layout.deepspeed_stage,
            offload=layout.offload,
            compiled=self.task.compile != "off",
        )

    def of(self, number: int, gpus: int, setting: RowSetting | None = None) -> RowMemory:
        """Memory of a row in a world of so many GPUs, as the manifest has it or in another setting."""
        row = self.task.buckets[number]
        setting = setting or self.setting(row)
        image, text = self._tokens(row, setting.context_parallel)
        gpus_per_node = self.pool.gpus_per_node
        heads = ulysses_degree(setting.context_parallel, gpus_per_node, self.shape.heads)
        # Beside an adapter `selective` keeps the products of each layer and of its addition: nearly everything.
        adapted = self.task.lora is not None and setting.recompute == "selective"
        batch = MicroBatch(
            samples=setting.batch_size,
            image_tokens=image,
            text_tokens=text,
            recompute="none" if adapted else setting.recompute,
            recomputed=setting.recomputed,
            compiled=setting.compiled,
            float32=self.task.precision == "fp32",
            shares_heads=heads > 1,
            ring_parts=setting.context_parallel // heads,
        )
        keeps = not setting.compiled and (setting.recompute == "none" or setting.recomputed != (None, None))
        memory = gpu_memory(self.shape, self.state(gpus, setting, keeps_gathered=keeps), batch, self.text)
        return RowMemory(
            path=f"spec.stages[{self.index}].train.buckets[{number}]",
            row=row_name(row),
            gpus=gpus,
            engine=setting.engine,
            tokens=setting.batch_size * (image + text),
            memory=memory,
            total=memory.total,
            limit=self.limit,
        )

    @cached_property
    def text(self) -> int:
        """Bytes of the text encoders that encode beside the steps."""
        spec = self.run.spec.text_encoder
        return text_bytes(spec) + text_work(spec, TEXTS_BESIDE) if self.task.text == "online" else 0

    def state(self, gpus: int, setting: RowSetting, *, keeps_gathered: bool) -> ModelState:
        """What the engine holds on a GPU between micro-batches, in a world of so many GPUs."""
        sharding = Sharding(
            engine=setting.engine,
            zero_stage=setting.zero_stage,
            offload=setting.offload,
            ranks=gpus,
            float32=self.task.precision == "fp32",
            average=bool(self.task.ema_decay),
            keeps_gathered=keeps_gathered,
        )
        return model_state(self.parameters, sharding)

    def largest_clip(self, row: Bucket) -> tuple[int, int]:
        """Image tokens and latent frames of a row's longest clip in the shape that has most tokens."""
        spec = self.run.spec
        model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
        shapes = aspect.shapes(row.resolution, flops.grid(model, autoencoder), row.aspect_ratios)
        image = max(flops.image_tokens(model, autoencoder, row.frames, *size) for size in shapes.values())
        return image, autoencoder.time.latent_frames(row.frames)

    def _tokens(self, row: Bucket, degree: int) -> tuple[int, int]:
        """Image and text tokens of a sample on one GPU."""
        image, _ = self.largest_clip(row)
        return -(-image // degree), -(-self.run.spec.text_encoder.max_tokens // degree)

    @cached_property
    def parameters(self) -> Parameters:
        """How many the stage trains and keeps frozen."""
        shape, lora = self.shape, self.task.lora
        everything = flops.parameters(shape)
        largest = max(flops.block_parameters(shape, "double"), flops.block_parameters(shape, "single"))
        if lora is None:
            return Parameters(trained=everything, frozen=0, largest_block=largest)
        adapter = flops.adapter_parameters(shape, lora)
        if lora.quantize_base == "none":
            return Parameters(trained=adapter, frozen=everything, largest_block=adapter)
        base = flops.quantized_base(shape)
        return Parameters(
            trained=adapter,
            frozen=everything,
            largest_block=adapter,
            quantized=base.weights,
            scales=base.rows,
            widened=base.largest,
        )


def row_name(row: Bucket) -> str:
    """`256px 5-33f`, or `768px 1f`."""
    shortest = row.min_frames or row.frames
    span = f"{row.frames}f" if shortest == row.frames else f"{shortest}-{row.frames}f"
    return f"{row.resolution} {span}"


def worlds_of(run: VideoTrainingRun, stage: Stage) -> list[int]:
    """GPUs of every world that a stage may have, fewest first. The fewest need most memory."""
    return [nodes * pool_of(run, stage).gpus_per_node for nodes in node_counts(node_bounds(run, stage))]
