"""What stages that handle pixels need of a GPU's memory: training an autoencoder, encoding clips and drawing videos.

Autoencoders of kind `diffusers` are left out: only the folder of their weights tells their layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from videotrain_api.config import aspect, presets
from videotrain_api.config.resolve import latent_readers
from videotrain_api.cost import flops
from videotrain_api.cost.autoencoder_flops import autoencoder_parameters, largest_unit
from videotrain_api.cost.autoencoder_memory import ClipBatch, clip_memory, critic_parameters
from videotrain_api.cost.coding_memory import decode_memory, encode_batch_memory, encode_memory
from videotrain_api.cost.memory import RESERVE, MicroBatch, drawing_memory
from videotrain_api.cost.model_state import ModelState, Parameters, Sharding, model_state
from videotrain_api.cost.stage_memory import RowMemory, RowSetting, TrainMemory, limit_of, row_name, worlds_of
from videotrain_api.cost.text_encoding import TEXTS_AT_ONCE, text_bytes, text_work
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.evaluation import Reconstruction
from videotrain_api.resource.references import reference_frames
from videotrain_api.resource.stages import AutoencoderTask, Bucket, SampleTask, Stage, TrainingSamples
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel

_BYTES: Final = 2
COUNTED: Final = ("dc-ae", "hunyuan-vae")
"""Kinds of autoencoders whose layers are known."""


class CodingMemory(ApiModel):
    """What a size of an encode, sample or evaluate stage needs of each GPU, or one of `train.samples`."""

    path: str
    """Of the stage in the manifest."""
    row: str
    """Such as `768px 129f`."""
    models: int
    """Weights that are on the GPU at its largest moment, and in a train stage what its engine holds; bytes."""
    work: int
    """What is computed then: text, a clip in tiles, or latents; bytes."""
    doing: str
    """What that is: `text`, `encoding`, `drawing` or `decoding`."""
    reserve: int = RESERVE
    """See `memory.RESERVE`."""
    total: int
    """Bytes."""
    limit: int
    """Bytes that there are: pool.gpuMemoryGigabytes."""

    @property
    def fits(self) -> bool:
        """Whether the GPU has as much."""
        return self.total <= self.limit


@dataclass(frozen=True)
class AutoencoderMemory:
    """The clips of an autoencoder stage of a run whose architectures are complete.

    Args:
        run: the manifest.
        index: of one of its autoencoder stages.
    """

    run: VideoTrainingRun
    index: int

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.run.spec.stages[self.index]

    @property
    def task(self) -> AutoencoderTask:
        """The stage's task."""
        assert self.stage.autoencoder is not None, "made for autoencoder stages"
        return self.stage.autoencoder

    @cached_property
    def spec(self) -> AutoencoderSpec:
        """The autoencoder, complete."""
        return presets.complete_autoencoder(self.run.spec.autoencoder)

    def setting(self) -> RowSetting:
        """How the manifest has it."""
        layout, row = self.task.parallel, self.task.bucket
        return RowSetting(
            batch_size=row.batch_size,
            micro_batches=layout.micro_batches_of(row),
            context_parallel=1,
            recompute=layout.recompute_of(row),
            recomputed=(None, None),
            engine=layout.engine,
            zero_stage=layout.deepspeed_stage,
            offload=layout.offload,
            compiled=False,
        )

    def of(self, gpus: int, setting: RowSetting | None = None, row: Bucket | None = None) -> RowMemory:
        """Memory in a world of so many GPUs, as the manifest has it, or in another setting or size."""
        setting, row, task = setting or self.setting(), row or self.task.bucket, self.task
        float32 = task.precision == "fp32"
        sharding = Sharding(
            engine=setting.engine,
            zero_stage=setting.zero_stage,
            offload=setting.offload,
            ranks=gpus,
            float32=float32,
            average=bool(task.ema_decay),
        )
        sides = aspect.shapes(row.resolution, self.spec.spatial_compression, row.aspect_ratios or ["1:1"]).values()
        batch = ClipBatch(
            samples=setting.batch_size,
            size=(row.frames, *max(sides, key=lambda side: side[0] * side[1])),
            recompute=setting.recompute,
            perceptual=task.perceptual is not None,
            adversarial=task.adversarial,
            float32=float32,
            lone_head=task.head_ratio > 0,
        )
        memory = clip_memory(self.spec, self._state(sharding), batch)
        return RowMemory(
            path=f"spec.stages[{self.index}].autoencoder.bucket",
            row=row_name(row),
            gpus=gpus,
            engine=setting.engine,
            tokens=0,
            memory=memory,
            total=memory.total,
            limit=limit_of(self.run, self.stage),
        )

    def _state(self, sharding: Sharding) -> ModelState:
        trained = autoencoder_parameters(self.spec)
        state = model_state(Parameters(trained=trained, frozen=0, largest_block=largest_unit(self.spec)), sharding)
        if self.task.adversarial is None:
            return state
        critic = critic_parameters(self.task.adversarial)
        beside = model_state(
            Parameters(trained=critic, frozen=0, largest_block=critic), replace(sharding, average=False)
        )
        return ModelState(
            weights=state.weights + beside.weights,
            gradients=state.gradients + beside.gradients,
            optimizer=state.optimizer + beside.optimizer,
            average=state.average,
            buffers=state.buffers + beside.buffers,
        )


def encode_rows(run: VideoTrainingRun, index: int) -> Iterator[tuple[Bucket, CodingMemory]]:
    """Every size that an encode stage makes; none if the autoencoder's layers are not known."""
    spec = presets.complete_autoencoder(run.spec.autoencoder)
    if spec.kind in COUNTED:
        rows = [row for reader in latent_readers(run.spec.stages, index, run.spec.seed) for row in reader.buckets]
        sizes = {(row.resolution, row.frames, row.min_frames, tuple(row.aspect_ratios or ())): row for row in rows}
        for row in sizes.values():
            yield row, encoding(run, index, row, spec)


def encoding(run: VideoTrainingRun, index: int, row: Bucket, spec: AutoencoderSpec) -> CodingMemory:
    """A size of an encode stage, with an autoencoder that is complete and may have other tiles than the manifest's."""
    model = presets.complete_transformer(run.spec.model)
    sides = aspect.shapes(row.resolution, flops.grid(model, spec), row.aspect_ratios).values()
    models = _BYTES * autoencoder_parameters(spec) + text_bytes(run.spec.text_encoder)
    work = {
        "encoding": max(encode_batch_memory(spec, (frames, *side)) for side in sides for frames in {1, row.frames}),
        "text": text_work(run.spec.text_encoder, TEXTS_AT_ONCE),
    }
    doing = max(work, key=lambda name: work[name])
    return _coding(run, index, row_name(row), models, work[doing], doing)


def drawing(run: VideoTrainingRun, index: int, task: SampleTask, spec: AutoencoderSpec) -> CodingMemory:
    """The videos of a sample stage, with another task or other tiles than the manifest's; `spec` is complete."""
    model, text = presets.complete_transformer(run.spec.model), run.spec.text_encoder
    side = aspect.shape_of(task.resolution, task.aspect_ratio, flops.grid(model, spec))
    shape = flops.mmdit_shape(model, spec, text)
    batch = MicroBatch(
        samples=1 if task.offload else branches(task, guidance_embed=bool(model.guidance_embed)),
        image_tokens=flops.image_tokens(model, spec, task.frames, *side),
        text_tokens=text.max_tokens,
        compiled=False,
    )
    weights = {
        "text": text_bytes(text),
        "drawing": _BYTES * flops.parameters(shape),
        "decoding": _BYTES * autoencoder_parameters(spec),
    }
    given = max((reference_frames(prompt.condition, spec.time) for prompt in task.prompts), default=0)
    given = max(given, 1 if task.from_dataset else 0)
    work = {
        "text": text_work(text),
        "drawing": drawing_memory(shape, batch),
        "decoding": max(decode_memory(spec, (task.frames, *side)), encode_memory(spec, (given, *side)) if given else 0),
    }

    def needed(name: str) -> int:
        return work[name] + (weights[name] if task.offload else 0)

    doing = max(work, key=needed)
    models = weights[doing] if task.offload else sum(weights.values())
    row = f"{task.resolution} {task.frames}f"
    return _coding(run, index, row, models, work[doing], doing)


def drawing_between_steps(run: VideoTrainingRun, index: int, task: TrainingSamples) -> CodingMemory:
    """The videos of `train.samples` beside all that the engine holds, in the smallest world of the stage.

    Args:
        run: whose autoencoder's layers are known.
        index: of a train stage.
        task: what is drawn: the manifest's, or another one.
    """
    table, spec = TrainMemory(run, index), presets.complete_autoencoder(run.spec.autoencoder)
    model, text = presets.complete_transformer(run.spec.model), run.spec.text_encoder
    side = aspect.shape_of(task.resolution, task.aspect_ratio, flops.grid(model, spec))
    conditioned = task.frames > 1 and any(prompt.condition != "t2v" for prompt in task.prompts)
    batch = MicroBatch(
        samples=1 if model.guidance_embed else 3 if conditioned else 2,
        image_tokens=flops.image_tokens(model, spec, task.frames, *side),
        text_tokens=text.max_tokens,
        compiled=False,
        float32=table.task.precision == "fp32",
    )
    given = max(reference_frames(prompt.condition, spec.time) for prompt in task.prompts)
    coding = max(decode_memory(spec, (task.frames, *side)), encode_memory(spec, (given, *side)) if given else 0)
    work = {
        "drawing": drawing_memory(table.shape, batch),
        "decoding": _BYTES * autoencoder_parameters(spec) + coding,
    }
    state = table.state(worlds_of(run, table.stage)[0], table.setting(table.task.buckets[0]), keeps_gathered=False)
    held = state.weights + state.gradients + state.optimizer + state.average + state.buffers + table.text
    doing = max(work, key=lambda name: work[name])
    memory = _coding(run, index, f"{task.resolution} {task.frames}f", held, work[doing], doing)
    return memory.model_copy(update={"path": f"{memory.path}.samples"})


def reconstructing(run: VideoTrainingRun, index: int, task: Reconstruction, spec: AutoencoderSpec) -> CodingMemory:
    """The clips of an evaluate stage, through the autoencoder and back; `spec` is complete."""
    assert spec.spatial_compression is not None, "a complete specification has one"
    size = (task.frames, *aspect.shape_of(task.resolution, task.aspect_ratio, spec.spatial_compression))
    work = {"encoding": encode_memory(spec, size), "decoding": decode_memory(spec, size)}
    doing = max(work, key=lambda name: work[name])
    models = _BYTES * autoencoder_parameters(spec)
    return _coding(run, index, f"{task.resolution} {task.frames}f", models, work[doing], doing)


def _coding(run: VideoTrainingRun, index: int, row: str, models: int, work: int, doing: str) -> CodingMemory:
    stage = run.spec.stages[index]
    total = models + work + RESERVE
    return CodingMemory(
        path=f"spec.stages[{index}].{stage.task}",
        row=row,
        models=models,
        work=work,
        doing=doing,
        total=total,
        limit=limit_of(run, stage),
    )


def branches(task: SampleTask, *, guidance_embed: bool) -> int:
    """Branches of guidance that are computed at once."""
    if guidance_embed:
        return 1
    conditioned = task.from_dataset or any(prompt.condition != "t2v" for prompt in task.prompts)
    return 3 if conditioned and task.frames > 1 else 2
