"""From a manifest to the frozen configuration of each stage: presets filled in, inputs connected, seeds derived."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.stage_config import HeldOut, LatentReader, StageConfig, StagePaths
from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.stages import Stage, Subset, Task, TrainTask
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_of
from videotrain_api.schema import ManifestError, Problem
from videotrain_api.storage import layout


def resolve(run: VideoTrainingRun) -> list[StageConfig]:
    """One frozen configuration per stage, in order.

    Raises:
        ManifestError: a preset is unknown, an architecture field or an input of a stage is missing.
    """
    model = _model(run)
    autoencoder = complete_autoencoder(run.spec.autoencoder)
    missing = [problem for index in range(len(run.spec.stages)) for problem in missing_inputs(run, index)]
    if missing:
        raise ManifestError(missing)
    return [_stage_config(run, index, model, autoencoder) for index in range(len(run.spec.stages))]


def uses_transformer(run: VideoTrainingRun) -> bool:
    """Whether any stage trains the transformer or draws from it."""
    held_out = any(stage.evaluate and stage.evaluate.held_out for stage in run.spec.stages)
    return held_out or any(stage.task in ("train", "sample") for stage in run.spec.stages)


def stage_seed(run_seed: int, stage: str) -> int:
    """Seed of a stage: 53 bits (exact in every JSON reader) of SHA-256 over the run's seed and the stage's name."""
    digest = hashlib.sha256(f"{run_seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def stage_paths(run: VideoTrainingRun, index: int) -> StagePaths:
    """What the stage at `index` reads and writes; an input that it does not read is None."""
    stage = run.spec.stages[index]
    reads = _used(stage, _READS)
    sources = {name: _source(run, index, name) for name in reads}
    return StagePaths(
        output=_output(run, stage),
        initial_weights=_initial_weights(run, index),
        videos=_videos(run, index),
        **sources,
    )


def missing_inputs(run: VideoTrainingRun, index: int) -> list[Problem]:
    """The inputs that the stage at `index` needs and that nothing before it makes, as problems of its `task`."""
    stage = run.spec.stages[index]
    needs = _used(stage, _NEEDS)
    return [
        Problem(f"spec.stages[{index}].task", stage.task, f"needs {_HOW[name]}")
        for name in needs
        if _source(run, index, name) is None
    ]


def latent_readers(stages: Sequence[Stage], index: int, run_seed: int) -> list[LatentReader]:
    """The train stages that read what the encode stage at `index` makes. A later encode stage takes over from there.

    Args:
        stages: of the run.
        index: of the encode stage; -1 for all train stages up to the first encode stage.
        run_seed: `spec.seed`.
    """
    found = []
    for stage in stages[index + 1 :]:
        if stage.task == "encode":
            break
        if stage.train:
            found.append(latent_reader(stage.name, stage.train, stage_seed(run_seed, stage.name)))
    return found


def with_subset(stage: Stage, subsets: Sequence[Subset]) -> Stage:
    """The stage with the bounds of the subset that it names among those that it selects by."""
    if stage.train is None or stage.train.subset is None:
        return stage
    bounds = next(subset.select for subset in subsets if subset.name == stage.train.subset)
    task = stage.train.model_copy(update={"subset": None, "select": [*bounds, *stage.train.select]})
    return stage.model_copy(update={"train": task})


def latent_reader(name: str, task: TrainTask, seed: int) -> LatentReader:
    """How a train stage chooses samples of an encoded set."""
    spread = dict.fromkeys(("micro_batches", "context_parallel", "recompute"))
    return LatentReader(
        stage=name,
        seed=seed,
        buckets=[row.model_copy(update={**spread, "batch_size": 1}) for row in task.buckets],
        select=task.select,
        prompt_style=task.prompt_style,
        references=[kind for kind in task.conditioning.kinds if kind.startswith("v2v")],
        text=task.text,
    )


_READS: dict[Task, tuple[str, ...]] = {
    "curate": (),
    "autoencoder": ("clips",),
    "encode": ("clips", "autoencoder_weights"),
    "train": ("latents",),
    "sample": ("clips", "latents", "autoencoder_weights", "model_weights"),
    "evaluate": ("clips", "autoencoder_weights"),
}
_NEEDS: dict[Task, tuple[str, ...]] = {
    "curate": ("videos",),
    "autoencoder": ("clips",),
    "encode": ("clips", "autoencoder_weights"),
    "train": ("latents",),
    "sample": ("autoencoder_weights", "model_weights"),
    "evaluate": ("clips", "autoencoder_weights"),
}
_MADE_BY: dict[str, Task] = {
    "clips": "curate",
    "latents": "encode",
    "autoencoder_weights": "autoencoder",
    "model_weights": "train",
}
_HOW = {
    "videos": "raw videos: set spec.dataset.videos or spec.dataset.sources",
    "clips": "clips: set spec.dataset.clips or put a stage with task 'curate' before it",
    "latents": "latents: set spec.dataset.latents or spec.dataset.sources, or put a stage with task 'encode' before it",
    "autoencoder_weights": "an autoencoder: set spec.autoencoder.weights or put a stage with task 'autoencoder' before",
    "model_weights": "a transformer: set spec.model.weights or put a stage with task 'train' before it",
}


def _used(stage: Stage, table: Mapping[Task, tuple[str, ...]]) -> tuple[str, ...]:
    """Videos are measured without a model, and beside the clips that they were drawn from if there are such; held-out
    samples without an autoencoder. What is drawn while a stage trains has to be decoded.
    """
    if stage.train and stage.train.samples:
        return (*table[stage.task], "autoencoder_weights")
    task = stage.evaluate
    if task is None:
        return table[stage.task]
    drawn = (task.videos or task.videos_uri) and table is _READS
    clips = table[stage.task] if task.reconstruction else ("clips",) if drawn else ()
    return (*clips, *(("latents", "model_weights") if task.held_out else ()))


def _videos(run: VideoTrainingRun, index: int) -> str | None:
    task = run.spec.stages[index].evaluate
    if task is None:
        return None
    made = (stage for stage in run.spec.stages[:index] if stage.name == task.videos)
    return next((_output(run, stage) for stage in made), task.videos_uri)


def _held_out(stages: Sequence[Stage], index: int, run_seed: int) -> HeldOut | None:
    task = stages[index].evaluate
    named = (stage for stage in stages[:index] if task and stage.train and stage.name == task.held_out)
    for stage in named:
        bare = stage.model_copy(update={"nodes": None, "pool": None})
        return HeldOut(stage=bare, seed=stage_seed(run_seed, stage.name))
    return None


def _source(run: VideoTrainingRun, index: int, name: str) -> str | None:
    made_by = _MADE_BY.get(name)
    earlier = [stage for stage in run.spec.stages[:index] if stage.task == made_by]
    return _output(run, earlier[-1]) if earlier else _given(run, name)


def _given(run: VideoTrainingRun, name: str) -> str | None:
    spec = run.spec
    return {
        "videos": next(iter(spec.dataset.raw.values()), None),
        "clips": spec.dataset.clips,
        "latents": next(iter(spec.dataset.encoded.values()), None),
        "autoencoder_weights": spec.autoencoder.weights,
        "model_weights": spec.model.weights,
    }[name]


def _initial_weights(run: VideoTrainingRun, index: int) -> str | None:
    stage = run.spec.stages[index]
    task = stage.train or stage.autoencoder
    if task is None:
        return None
    if task.init_from is not None:
        named = (stage for stage in run.spec.stages[:index] if stage.name == task.init_from.stage)
        return task.init_from.uri or next((_output(run, stage) for stage in named), None)
    if stage.train:
        return _source(run, index, "model_weights")
    return run.spec.autoencoder.weights


def _output(run: VideoTrainingRun, stage: Stage) -> str:
    return layout.stage_prefix(run.spec.storage.uri, run.metadata.name, stage.name)


def _model(run: VideoTrainingRun) -> TransformerSpec:
    return complete_transformer(run.spec.model) if uses_transformer(run) else run.spec.model


def _stage_config(
    run: VideoTrainingRun, index: int, model: TransformerSpec, autoencoder: AutoencoderSpec
) -> StageConfig:
    spec = run.spec
    stages = [with_subset(stage, spec.dataset.subsets) for stage in spec.stages]
    stage = stages[index]
    return StageConfig(
        run=f"{run.metadata.namespace}/{run.metadata.name}",
        # Elastic bounds may change while the stage runs, and its pool while nothing runs.
        stage=stage.model_copy(update={"nodes": None, "pool": None}),
        model=model,
        autoencoder=autoencoder,
        text_encoder=spec.text_encoder,
        dataset=spec.dataset.model_copy(update={"subsets": []}),  # they are resolved, and others change no stage
        storage=spec.storage,
        checkpoint=spec.checkpoint,
        paths=stage_paths(run, index),
        latent_readers=latent_readers(stages, index, spec.seed) if stage.task == "encode" else [],
        held_out=_held_out(stages, index, spec.seed),
        log_every_steps=spec.log_every_steps,
        tracking=spec.tracking,
        seed=stage_seed(spec.seed, stage.name),
        gpus_per_node=pool_of(run, stage).gpus_per_node,
        hang_seconds=spec.failure_policy.hang_seconds,
        start_seconds=spec.failure_policy.start_seconds,
        grace_seconds=spec.failure_policy.grace_seconds,
    )
