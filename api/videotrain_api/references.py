"""What a run refers to outside of itself: weights, data and pictures, their fields and readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from videotrain_api.config.resolve import stage_paths
from videotrain_api.resource.stages import Prompt, Stage
from videotrain_api.resource.trainrun import VideoTrainingRun

Role = Literal[
    "transformer",
    "autoencoder",
    "textEncoder",
    "perceptual",
    "imageModel",
    "videos",
    "captions",
    "clips",
    "latents",
    "picture",
    "video",
    "folder",
]
"""What is there: weights of a model, raw videos, a table of captions, a curated or an encoded set, a reference, or a
folder of somebody's videos."""
WEIGHTS: Final[tuple[Role, ...]] = ("transformer", "autoencoder", "textEncoder", "perceptual", "imageModel")


@dataclass(frozen=True)
class Reference:
    """A place that a run reads and does not make."""

    path: str
    """Field, such as `spec.model.weights`."""
    uri: str
    role: Role
    stages: tuple[int, ...]
    """Which stages read it, by their place in spec.stages; none for a field that no stage looks at."""


def references(run: VideoTrainingRun) -> Iterator[Reference]:
    """Every place that a run names, in the order of the manifest. Its architectures need not be complete."""
    yield from _models(run)
    yield from _dataset(run)
    for index, stage in enumerate(run.spec.stages):
        path = f"spec.stages[{index}].{stage.task}"
        task = stage.train or stage.autoencoder
        if task is not None and task.init_from is not None and task.init_from.uri:
            role: Role = "transformer" if stage.train else "autoencoder"
            yield Reference(f"{path}.initFrom.uri", task.init_from.uri, role, (index,))
        if stage.autoencoder is not None and stage.autoencoder.perceptual is not None:
            yield Reference(f"{path}.perceptual.weights", stage.autoencoder.perceptual.weights, "perceptual", (index,))
        if stage.evaluate is not None and stage.evaluate.reconstruction and stage.evaluate.reconstruction.lpips:
            yield Reference(f"{path}.reconstruction.lpips", stage.evaluate.reconstruction.lpips, "perceptual", (index,))
        yield from _measured(path, stage, index)
        if stage.curate is not None and stage.curate.image_model is not None:
            yield Reference(f"{path}.imageModel.weights", stage.curate.image_model.weights, "imageModel", (index,))
        if stage.sample:
            yield from _prompts(path, stage.sample.prompts, index)
        if stage.train and stage.train.samples:
            yield from _prompts(f"{path}.samples", stage.train.samples.prompts, index)


def _prompts(path: str, prompts: Sequence[Prompt], index: int) -> Iterator[Reference]:
    for number, prompt in enumerate(prompts):
        where = f"{path}.prompts[{number}]"
        given: tuple[tuple[str, str | None, Role], ...] = (
            ("image", prompt.image, "picture"),
            ("lastImage", prompt.last_image, "picture"),
            ("video", prompt.video, "video"),
        )
        yield from (Reference(f"{where}.{name}", uri, role, (index,)) for name, uri, role in given if uri)


def _measured(path: str, stage: Stage, index: int) -> Iterator[Reference]:
    task = stage.evaluate
    if task is not None and task.videos_uri is not None:
        yield Reference(f"{path}.videosUri", task.videos_uri, "folder", (index,))
    if task is not None and task.preference is not None:
        yield Reference(f"{path}.preference.videos", task.preference.videos, "folder", (index,))


def _models(run: VideoTrainingRun) -> Iterator[Reference]:
    spec, paths = run.spec, [stage_paths(run, index) for index in range(len(run.spec.stages))]
    stages = list(enumerate(spec.stages))
    if spec.model.weights:
        named = spec.model.weights
        readers = [
            i
            for i, stage in stages
            if named in (paths[i].model_weights, paths[i].initial_weights)
            and stage.task in ("train", "sample", "evaluate")
            and not (stage.train and stage.train.init_from)
        ]
        yield Reference("spec.model.weights", named, "transformer", tuple(readers))
    if spec.autoencoder.weights:
        named = spec.autoencoder.weights
        readers = [
            i
            for i, stage in stages
            if paths[i].autoencoder_weights == named or (stage.autoencoder and not stage.autoencoder.init_from)
        ]
        yield Reference("spec.autoencoder.weights", named, "autoencoder", tuple(readers))
    if spec.text_encoder.weights:
        readers = [i for i, stage in stages if _encodes_text(stage, spec.stages[:i])]
        yield Reference("spec.textEncoder.weights", spec.text_encoder.weights, "textEncoder", tuple(readers))


def _encodes_text(stage: Stage, before: Sequence[Stage]) -> bool:
    """Whether a stage loads the text encoder, which one that measures a held-out loss may do as the stage it asks."""
    asked = stage.evaluate.held_out if stage.evaluate else None
    if asked is not None:
        return any(one.name == asked and one.train and one.train.text == "online" for one in before)
    train = stage.train
    return stage.task in ("encode", "sample") or bool(train and (train.samples or train.text == "online"))


def _dataset(run: VideoTrainingRun) -> Iterator[Reference]:
    dataset, stages = run.spec.dataset, list(enumerate(run.spec.stages))
    paths = [stage_paths(run, index) for index, _ in stages]
    curating = tuple(i for i, stage in stages if stage.task == "curate")
    encoded = tuple(i for i, stage in stages if stage.task == "train")
    if dataset.videos:
        yield Reference("spec.dataset.videos", dataset.videos, "videos", curating)
    if dataset.caption_table:
        yield Reference("spec.dataset.captionTable", dataset.caption_table, "captions", curating)
    if dataset.clips:
        readers = tuple(i for i, _ in stages if paths[i].clips == dataset.clips)
        yield Reference("spec.dataset.clips", dataset.clips, "clips", readers)
    if dataset.latents:
        readers = tuple(i for i, _ in stages if paths[i].latents == dataset.latents)
        yield Reference("spec.dataset.latents", dataset.latents, "latents", readers)
    for number, source in enumerate(dataset.sources):
        role: Role = "latents" if source.form == "latents" else "videos"
        yield Reference(
            f"spec.dataset.sources[{number}].uri", source.uri, role, encoded if role == "latents" else curating
        )
