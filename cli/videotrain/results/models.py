"""Which models a folder of results names, and how its run drew from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from videotrain.errors import UsageError
from videotrain.manifest_file import read_manifest
from videotrain.results.folder import AUTOENCODER, FOLDER, MANIFEST, MODELS, TRANSFORMER
from videotrain_api.resource.stages import SampleTask, TrainTask
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run


@dataclass(frozen=True)
class ModelFiles:
    """What drawing and exporting need of a folder of results."""

    folder: Path
    transformer: str
    """Path or URI of its weights."""
    autoencoder: str
    """The same."""


def folder_of(workdir: Path | None, results: Path | None) -> Path:
    """The folder of results that a command line names: by itself, or by the working directory that it lies in.

    Raises:
        UsageError: there is none.
    """
    folder = results if results is not None else (workdir or Path()) / FOLDER
    if not (folder / MODELS).is_file():
        given = f"--results {results}" if results is not None else f"--workdir {workdir}"
        raise UsageError(
            f"{given}: there is no {folder / MODELS}; `videotrain local` writes it when a run ends (give the same "
            "command again), and `videotrain fetch` for a run of a cluster"
        )
    return folder


def model_files(folder: Path) -> ModelFiles:
    """Where the weights are: in the folder, else where the run stored them, else where its manifest names them.

    Raises:
        UsageError: weights are missing; the message says which and why.
    """
    models = json.loads((folder / MODELS).read_text())
    found = {}
    for member, name in (("model", TRANSFORMER), ("autoencoder", AUTOENCODER)):
        path = folder / name
        found[name] = str(path) if path.is_file() else models[member].get("weights")
        if found[name] is None:
            raise UsageError(
                f"{path}: not there: no stage that trains it is complete, and the manifest names none in "
                f"spec.{member}.weights"
            )
    return ModelFiles(folder, found[TRANSFORMER], found[AUTOENCODER])


def drawing_flags(folder: Path) -> list[str]:
    """Flags of `videotrain-trainer sample` for videos as the run's last sample stage draws them; without one, of the
    largest clips that its last train stage trains on.

    Raises:
        ManifestFileError: the manifest of the folder cannot be read.
        UsageError: it is refused.
    """
    path = folder / MANIFEST
    try:
        run = parse_run(read_manifest(path).run, fitting=False)
    except ManifestError as error:
        raise UsageError(f"{path}: {error}") from None
    trained = _last_train(run)
    style = ["--prompt-style", trained.prompt_style] if trained else []
    drawn = next((stage.sample for stage in reversed(run.spec.stages) if stage.sample), None)
    if drawn is not None:
        return [*style, *_as_drawn(drawn)]
    if trained is None:
        return style
    row = max(trained.buckets, key=lambda row: (row.frames, int(row.resolution.removesuffix("px"))))
    size = ["--resolution", row.resolution, "--num-frames", str(row.frames)]
    return [*style, *size, *(["--aspect", row.aspect_ratios[0]] if row.aspect_ratios else [])]


def _last_train(run: VideoTrainingRun) -> TrainTask | None:
    return next((stage.train for stage in reversed(run.spec.stages) if stage.train), None)


def _as_drawn(task: SampleTask) -> list[str]:
    flags = {
        "--resolution": task.resolution,
        "--num-frames": task.frames,
        "--aspect": task.aspect_ratio,
        "--steps": task.sampling_steps,
        "--image-guidance": task.image_guidance,
        "--fps": task.fps,
        "--motion": task.motion_score,
    }
    if task.text_guidance is not None:
        flags["--guidance"] = task.text_guidance
    switches = [] if task.dynamic_image_guidance else ["--no-dynamic-guidance"]
    # The command has one switch for both scales.
    switches += [] if task.oscillate_text or task.oscillate_image else ["--no-oscillation"]
    return [*(text for flag, value in flags.items() for text in (flag, str(value))), *switches]
