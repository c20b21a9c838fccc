"""Order, inputs and shape of the list of stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from videotrain_api.config.resolve import latent_readers, missing_inputs, stage_paths
from videotrain_api.resource.evaluation import EVALUATES_NOTHING, OF_ANY_VIDEOS, EvaluateTask
from videotrain_api.resource.references import misfits
from videotrain_api.resource.stages import (
    TASKS,
    NodeBounds,
    Prompt,
    SampleTask,
    Scorer,
    Stage,
    WeightsFrom,
)
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.facts import Facts
from videotrain_api.rules.training import check_bounds
from videotrain_api.schema import Problem, camel_case


def check_stages(facts: Facts) -> Iterator[Problem]:
    """Names, members, inputs, initial weights and node bounds of all stages."""
    run = facts.run
    yield from _bounds("spec.nodes", run.spec.nodes)
    yield from _unused_dataset(run)
    yield from _subsets(run)
    first: dict[str, int] = {}
    for index, stage in enumerate(run.spec.stages):
        path = f"spec.stages[{index}]"
        if stage.name in first:
            other = f"spec.stages[{first[stage.name]}]"
            yield Problem(f"{path}.name", stage.name, f"names must be unique; {other} has it already")
        first.setdefault(stage.name, index)
        yield from _member(path, stage)
        yield from missing_inputs(run, index)
        yield from _needless(path, run, index)
        yield from _initial_weights(path, run, index)
        if stage.nodes:
            yield from _bounds(f"{path}.nodes", stage.nodes)


def _member(path: str, stage: Stage) -> Iterator[Problem]:
    for name in TASKS:
        value = getattr(stage, name)
        if name == stage.task and value is None:
            yield Problem(f"{path}.{name}", None, f"task is '{stage.task}', so this field is required")
        if name != stage.task and value is not None:
            yield Problem(f"{path}.{name}", "(set)", f"task is '{stage.task}', so only '{stage.task}' may be set")


def _needless(path: str, run: VideoTrainingRun, index: int) -> Iterator[Problem]:
    stage = run.spec.stages[index]
    if stage.task == "encode" and not latent_readers(run.spec.stages, index, run.spec.seed):
        yield Problem(f"{path}.task", "encode", "no train stage reads it: put one after it or remove it")
    if stage.sample:
        yield from _sample(f"{path}.sample", stage.sample, stage_paths(run, index).clips is not None)
    if stage.train and stage.train.samples:
        for number, prompt in enumerate(stage.train.samples.prompts):
            yield from _prompt(f"{path}.train.samples.prompts[{number}]", prompt)
    if stage.evaluate:
        yield from _evaluate(f"{path}.evaluate", stage.evaluate, run.spec.stages[:index])


def _sample(path: str, task: SampleTask, has_clips: bool) -> Iterator[Problem]:
    if not task.prompts and not task.from_dataset:
        yield Problem(f"{path}.prompts", [], "nothing to draw: give prompts or set fromDataset")
    if task.from_dataset and not has_clips:
        allowed = "needs clips: set spec.dataset.clips or put a stage with task 'curate' before it"
        yield Problem(f"{path}.fromDataset", task.from_dataset, allowed)
    if (task.candidates > 1) != (task.scorer is not None):
        allowed = f"several candidates need a scorer and one takes none; allowed: {', '.join(get_args(Scorer))}"
        yield Problem(f"{path}.scorer", task.scorer, f"candidates is {task.candidates}: {allowed}")
    for number, prompt in enumerate(task.prompts):
        yield from _prompt(f"{path}.prompts[{number}]", prompt)


def _evaluate(path: str, task: EvaluateTask, before: Sequence[Stage]) -> Iterator[Problem]:
    has_videos = task.videos is not None or task.videos_uri is not None
    if task.reconstruction is None and task.held_out is None and not has_videos:
        yield Problem(path, task.to_wire(), EVALUATES_NOTHING)
    if task.videos is not None and task.videos_uri is not None:
        yield Problem(f"{path}.videosUri", task.videos_uri, "set videos or videosUri, not both")
    drawn = [stage.name for stage in before if stage.sample]
    if task.videos is not None and task.videos not in drawn:
        allowed = ", ".join(drawn) or "none, no stage with task 'sample' comes before"
        yield Problem(
            f"{path}.videos", task.videos, f"must name an earlier stage with task 'sample'; allowed: {allowed}"
        )
    for name in ("vbench", "preference"):
        if getattr(task, name) is not None and not has_videos:
            yield Problem(f"{path}.{name}", "(set)", f"{name} is of videos: set videos or videosUri, too")
    yield from _vbench(f"{path}.vbench", task)
    yield from _held_out(f"{path}.heldOut", task.held_out, before)


def _vbench(path: str, task: EvaluateTask) -> Iterator[Problem]:
    if task.vbench is None or task.vbench.suite:
        return
    for number, dimension in enumerate(task.vbench.dimensions):
        if dimension not in OF_ANY_VIDEOS:
            allowed = (
                f"needs videos of vbench's own prompts: set suite if they are; allowed: {', '.join(OF_ANY_VIDEOS)}"
            )
            yield Problem(f"{path}.dimensions[{number}]", dimension, allowed)


def _held_out(path: str, name: str | None, before: Sequence[Stage]) -> Iterator[Problem]:
    if name is None:
        return
    trained = {stage.name: stage.train for stage in before if stage.train}
    holding = [other for other, task in trained.items() if task.validation is not None]
    task = trained.get(name)
    if task is None or task.validation is None:
        allowed = ", ".join(holding) or "none, no stage with task 'train' and train.validation comes before"
        yield Problem(path, name, f"must name an earlier train stage with train.validation; allowed: {allowed}")
    newest = [*trained][-1] if trained else ""
    if newest and trained[newest].lora is not None:
        yield Problem(
            path, name, f"stage {newest!r} trains an adapter; its loss is measured while it is trained, not here"
        )


def _prompt(path: str, prompt: Prompt) -> Iterator[Problem]:
    given = {"image": prompt.image, "video": prompt.video, "last_image": prompt.last_image}
    for reference in misfits(prompt.condition, given):
        problem = f"condition is '{prompt.condition}': {reference.allowed}"
        yield Problem(f"{path}.{camel_case(reference.field)}", given[reference.field], problem)


def _initial_weights(path: str, run: VideoTrainingRun, index: int) -> Iterator[Problem]:
    stage = run.spec.stages[index]
    task = stage.train or stage.autoencoder
    source: WeightsFrom | None = task.init_from if task else None
    if source is None:
        return
    where = f"{path}.{stage.task}.initFrom"
    if source.stage is not None and source.uri is not None:
        yield Problem(where, source.to_wire(), "set stage or uri, not both")
    yield from _adapted(where, stage, source)
    earlier = [other.name for other in run.spec.stages[:index] if other.task == stage.task]
    if source.stage is not None and source.stage not in earlier:
        allowed = ", ".join(earlier) or f"none, no stage with task '{stage.task}' comes before"
        yield Problem(
            f"{where}.stage", source.stage, f"must name an earlier stage of the same task; allowed: {allowed}"
        )


def _adapted(where: str, stage: Stage, source: WeightsFrom) -> Iterator[Problem]:
    if source.adapt is None:
        return
    fitting = "image-autoencoder" if stage.autoencoder else "new-latents"
    if source.adapt != fitting:
        yield Problem(f"{where}.adapt", source.adapt, f"task is '{stage.task}'; allowed: {fitting}")
    if source.uri is None:
        allowed = "needs uri: the stages of a run share their models, so there is nothing to adapt"
        yield Problem(f"{where}.adapt", source.adapt, allowed)
    if stage.train and stage.train.lora is not None:
        allowed = "new layers must be trained, but with train.lora only the adapter is: leave one of the two out"
        yield Problem(f"{where}.adapt", source.adapt, allowed)


def _subsets(run: VideoTrainingRun) -> Iterator[Problem]:
    used = {stage.train.subset for stage in run.spec.stages if stage.train}
    seen: set[str] = set()
    for number, subset in enumerate(run.spec.dataset.subsets):
        path = f"spec.dataset.subsets[{number}]"
        if subset.name in seen:
            yield Problem(f"{path}.name", subset.name, "names must be unique; an earlier subset has it already")
        elif subset.name not in used:
            yield Problem(f"{path}.name", subset.name, "no stage has it as its train.subset: use or remove it")
        seen.add(subset.name)
        yield from check_bounds(f"{path}.select", subset.select)


def _unused_dataset(run: VideoTrainingRun) -> Iterator[Problem]:
    dataset, indices = run.spec.dataset, range(len(run.spec.stages))
    paths = [stage_paths(run, index) for index in indices]
    given = {
        "clips": (dataset.clips, "curate", [p.clips for p in paths]),
        "latents": (dataset.latents, "encode", [p.latents for p in paths]),
    }
    for name, (value, task, read) in given.items():
        makers = [stage.name for stage in run.spec.stages if stage.task == task]
        if value is not None and makers and value not in read:
            allowed = f"no stage reads it, since stage '{makers[0]}' makes {name}: remove one of the two"
            yield Problem(f"spec.dataset.{name}", value, allowed)


def _bounds(path: str, bounds: NodeBounds) -> Iterator[Problem]:
    if bounds.min > bounds.max:
        yield Problem(f"{path}.min", bounds.min, f"must be at most max ({bounds.max})")
        return
    allowed = bounds.allowed or []
    if allowed != sorted(set(allowed)):
        yield Problem(f"{path}.allowed", allowed, "must be ascending without repetition")
    outside = [count for count in allowed if not bounds.min <= count <= bounds.max]
    if outside:
        yield Problem(f"{path}.allowed", allowed, f"every count must lie from min {bounds.min} to max {bounds.max}")
