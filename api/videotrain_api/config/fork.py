"""A run that begins from what another one made: its first stages are left out, and their outputs are inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

from videotrain_api.config.resolve import stage_paths
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.stages import Stage, TrainTask
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json, Problem
from videotrain_api.storage import layout

_HEAD: Final = ("namespace", "labels")
_FREE_OF_TASK: Final = ("steps", "optimizer", "validation", "samples", "sampleCacheGibibytes", "compile", "attention")
_FREE_OF_LAYOUT: Final = (
    "contextParallel",
    "engine",
    "zeroStage",
    "offload",
    "recompute",
    "checkpointDoubleBlocks",
    "checkpointSingleBlocks",
)
_FREE_OF_ROW: Final = ("contextParallel", "recompute", "batchSize", "microBatches")
"""The product of the last two, the samples of a step, is compared; how they are cut decides nothing."""


def forked(run: VideoTrainingRun, manifest: Json, first: str, name: str) -> Json:
    """The manifest of a run with the stages from `first` on.

    What these stages read of the others is named by its URI: clips, latents, and final weights. Stages keep their names
    and the run its seed, so their samples come in the order that they had.

    Args:
        run: the other one.
        manifest: its document.
        first: name of the first stage that is kept.
        name: of the new run.

    Raises:
        KeyError: the run has no such stage.
    """
    names = [stage.name for stage in run.spec.stages]
    if first not in names:
        raise KeyError(first)
    index = names.index(first)
    dropped = {_prefix(run, stage): stage for stage in run.spec.stages[:index]}
    document: Json = copy.deepcopy({key: manifest[key] for key in ("apiVersion", "kind", "spec")})
    kept = {key: manifest["metadata"][key] for key in _HEAD if manifest["metadata"].get(key)}
    document["metadata"] = {"name": name} | kept
    spec = document["spec"]
    spec.pop("suspend", None)
    spec["stages"] = spec["stages"][index:]
    if not any(stage.task == "curate" for stage in run.spec.stages[index:]):
        for field in ("videos", "captions", "captionTable"):
            spec["dataset"].pop(field, None)
    for number in range(index, len(names)):
        _name_inputs(run, number, dropped, spec)
    return document


def needed_stages(run: VideoTrainingRun, first: str) -> list[Stage]:
    """The stages before `first` whose outputs are read by it or a later one."""
    names = [stage.name for stage in run.spec.stages]
    index = names.index(first)
    read = {uri for number in range(index, len(names)) for uri in _read(run, number)}
    return [stage for stage in run.spec.stages[:index] if _prefix(run, stage) in read]


def continuation_problems(old: StageConfig, new: StageConfig) -> list[Problem]:
    """Why a stage cannot go on from a checkpoint of another configuration: what would change the order of its samples,
    or what a sample is. Steps, optimizer, validation, fixed prompts, checkpoints, engine, recomputation and how
    many GPUs share a clip may be others, and the samples of a step may be cut into other micro-batches.

    Args:
        old: of the stage that wrote the checkpoint.
        new: of the stage that is to go on.
    """
    before, after = _fixed(old), _fixed(new)
    told = "would change the order of samples or what is made of them, so no checkpoint can be gone on from"
    differing = [
        Problem(path, after.get(path), told)
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    ]
    if old.stage.train is None or new.stage.train is None or before["train.buckets"] != after["train.buckets"]:
        return differing
    return differing + list(_step_problems(old.stage.train, new.stage.train))


def _step_problems(old: TrainTask, new: TrainTask) -> Iterator[Problem]:
    """Rows, otherwise the same, whose steps would hold other samples."""
    told = "would change the order of samples: a step of row {} would hold {} x {} samples instead of {} x {}"
    layouts = (old.parallel.micro_batches_per_step, new.parallel.micro_batches_per_step)
    for number, (was, row) in enumerate(zip(old.buckets, new.buckets, strict=True)):
        sizes = [(each.batch_size, task.parallel.micro_batches_of(each)) for task, each in ((old, was), (new, row))]
        (batch, rounds), (new_batch, new_rounds) = sizes
        if batch * rounds == new_batch * new_rounds:
            continue
        why = told.format(number, new_batch, new_rounds, batch, rounds)
        if row.micro_batches is None and layouts[0] != layouts[1]:
            yield Problem("train.parallel.microBatchesPerStep", layouts[1], why)
            return
        field = "batchSize" if batch != new_batch else "microBatches"
        yield Problem(f"train.buckets[{number}].{field}", new_batch if batch != new_batch else new_rounds, why)


def _fixed_rows(task: TrainTask) -> list[Json]:
    """What may not change of each row of a bucket table. No two rows have samples of one shape, so how the samples of
    a step are cut into batches does not decide which of them come together.
    """
    return [{key: value for key, value in row.to_wire().items() if key not in _FREE_OF_ROW} for row in task.buckets]


def _fixed(config: StageConfig) -> Json:
    """What may not change, by path."""
    wire = config.to_wire()
    task = dict(wire["stage"][config.stage.task])
    parallel = {key: value for key, value in task.pop("parallel", {}).items() if key not in _FREE_OF_LAYOUT}
    held = (task.get("validation") or {}).get("share")  # of the clips that are never trained on
    fields = {key: value for key, value in task.items() if key not in _FREE_OF_TASK}
    if config.stage.train is not None:
        fields["buckets"] = _fixed_rows(config.stage.train)
        parallel.pop("microBatchesPerStep", None)  # see _step_problems
    found = {f"{config.stage.task}.{key}": value for key, value in fields.items()}
    found |= {f"{config.stage.task}.parallel.{key}": value for key, value in parallel.items()}
    paths = {f"inputs.{key}": wire["paths"].get(key) for key in ("clips", "latents")}
    models = {key: {k: v for k, v in wire[key].items() if k != "weights"} for key in ("model", "autoencoder")}
    others: Json = {"textEncoder": wire["textEncoder"], "seed": wire["seed"], "validation.share": held}
    others["dataset.sources"] = wire["dataset"].get("sources")
    return found | paths | models | others


def _name_inputs(run: VideoTrainingRun, number: int, dropped: dict[str, Stage], spec: Json) -> None:
    """Name in `spec` what a kept stage reads of dropped ones."""
    stage, paths = run.spec.stages[number], stage_paths(run, number)
    for field in ("clips", "latents"):
        uri = getattr(paths, field)
        if uri in dropped:
            spec["dataset"][field] = uri
    if paths.autoencoder_weights in dropped:
        spec["autoencoder"]["weights"] = layout.final_weights(paths.autoencoder_weights)
    if stage.evaluate and paths.videos in dropped:
        kept = next(each for each in spec["stages"] if each["name"] == stage.name)
        kept["evaluate"].pop("videos")
        kept["evaluate"]["videosUri"] = paths.videos
    task = stage.train or stage.autoencoder
    if task and task.init_from and task.init_from.stage:
        if paths.initial_weights in dropped:
            kept = next(each for each in spec["stages"] if each["name"] == stage.name)
            kept[stage.task]["initFrom"] = {"uri": layout.final_weights(paths.initial_weights)}
        return
    weights = paths.model_weights or (paths.initial_weights if stage.train else None)
    if weights in dropped:
        spec.setdefault("model", {})["weights"] = layout.final_weights(weights)


def _read(run: VideoTrainingRun, number: int) -> list[str | None]:
    paths = stage_paths(run, number)
    weights = (paths.autoencoder_weights, paths.initial_weights, paths.model_weights)
    return [paths.clips, paths.latents, *weights, paths.videos]


def _prefix(run: VideoTrainingRun, stage: Stage) -> str:
    return layout.stage_prefix(run.spec.storage.uri, run.metadata.name, stage.name)
