"""What `videotrain-trainer sample` does with its flags: first frames if asked for, then videos, told one by one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import torch

from videotrain_trainer.commands import sample_requests as flags
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.sampling import outputs
from videotrain_trainer.sampling.batch import Finished, Job, draw_batch
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.sampling.draw import OnProgress, SamplingPipeline
from videotrain_trainer.sampling.image_first import picture_jobs, with_pictures
from videotrain_trainer.sampling.loaded import Models, Sources, load_models
from videotrain_trainer.storage import ObjectStore, user_cache
from videotrain_trainer.text.encoders import TextEncoder


def draw(options: argparse.Namespace) -> int:
    """Draw what the flags ask for.

    Raises:
        TrainerError: something that is asked for cannot be drawn.
    """
    sources = flags.sources_of(options)
    images = flags.image_sources_of(options, sources)
    pipeline = _LazyPipeline(options)
    jobs = flags.jobs_of(options, sources, pipeline.contents)
    if images is not None:
        image_contents = pipeline.contents.of_models(images)
        pictures = picture_jobs(jobs, images, image_contents, flags.image_settings_of(options))
        for _ in pipeline.draw(pictures, images, "png"):
            pass
        pipeline.close()
        jobs = with_pictures(jobs, pictures)
    frames = jobs[0].request.settings.frames
    ending: outputs.Format = options.format or ("png" if frames == 1 else "mp4")
    if ending == "mp4" and frames == 1:
        raise ConfigError("--format: 'mp4' for a picture; allowed with --num-frames 1: png, gif")
    for finished in pipeline.draw(jobs, sources, ending):
        _tell(finished, options.json)
    return 0


class _LazyPipeline:
    """Loads models when they are needed, the text encoder once, and never two transformers at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._store = ObjectStore.for_storage(flags.storage_of(options))
        self._device = _device(options.device)
        self._cache = user_cache()
        self.contents = Contents(self._store, self._cache)
        self._text: TextEncoder | None = None
        self._models: Models | None = None

    def draw(self, jobs: list[Job], sources: Sources, ending: outputs.Format) -> Iterator[Finished]:
        return draw_batch(jobs, lambda: self._load(sources), ending, lambda job: progress(job, sys.stderr))

    def close(self) -> None:
        """Let the models go but for the text encoder."""
        self._models = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, sources: Sources) -> SamplingPipeline:
        self.close()
        offload = self._options.offload
        self._models = load_models(sources, self._store, self._cache, self._device, offload, self._text)
        self._text = self._models.text
        return SamplingPipeline(self._models, self._store)


def progress(job: Job, out: TextIO) -> OnProgress:
    """Shows the steps of a job: one line that changes on a terminal, a line per tenth elsewhere."""
    began, terminal = time.monotonic(), out.isatty()
    candidates = job.request.settings.candidates

    def show(candidate: int, done: int, steps: int) -> None:
        if not terminal and done != steps and done * 10 // steps == (done - 1) * 10 // steps:
            return
        which = f" candidate {candidate + 1}/{candidates}" if candidates > 1 else ""
        text = f"{job.stem.name}{which}: step {done}/{steps}, {time.monotonic() - began:.1f} s"
        last = done == steps and candidate + 1 == candidates
        out.write(f"\r{text}{chr(10) if last else ''}" if terminal else f"{text}\n")
        out.flush()

    return show


def _tell(finished: Finished, as_json: bool) -> None:
    write: Callable[[str], int] = sys.stdout.write
    sidecar = outputs.sidecar_of(finished.job.stem)
    if not as_json:
        write(f"{finished.path}{' (kept)' if finished.kept else ''}\n")
        return
    facts = json.loads(sidecar.read_text())
    shown = {name: facts[name] for name in ("hash", "seed", "scores")}
    line = {"file": str(finished.path), "sidecar": str(sidecar), "kept": finished.kept, **shown}
    write(json.dumps(line | {"prompt": finished.job.request.prompt, "seconds": round(finished.seconds, 3)}) + "\n")
    sys.stdout.flush()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r}: {str(error).splitlines()[0]}") from error
    return device
