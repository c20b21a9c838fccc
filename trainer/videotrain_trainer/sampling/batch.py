"""A batch of drawings to one folder, resumable: what is complete and was made by the same request is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.sampling import outputs
from videotrain_trainer.sampling.draw import OnProgress, SamplingPipeline
from videotrain_trainer.sampling.request import Request


@dataclass(frozen=True, kw_only=True)
class Job:
    """One drawing of a batch."""

    stem: Path
    """Path of its files without ending."""
    request: Request


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What became of a job."""

    job: Job
    path: Path
    """File or folder."""
    kept: bool
    """It was there already."""
    seconds: float


def draw_batch(
    jobs: Sequence[Job],
    pipeline: Callable[[], SamplingPipeline],
    ending: outputs.Format,
    on_progress: Callable[[Job], OnProgress],
) -> Iterator[Finished]:
    """Draw what is missing, in order.

    Args:
        jobs: with different stems.
        pipeline: loads the models; not called if nothing is missing.
        ending: of the files.
        on_progress: gives for each job whom its steps are told to.

    Raises:
        ConfigError: two jobs have one name.
    """
    stems = [job.stem for job in jobs]
    twice = sorted({str(stem) for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(f"names of the prompts: {', '.join(twice)} would be written twice; give each its own name")
    loaded: SamplingPipeline | None = None
    for job in jobs:
        began = time.monotonic()
        kept = outputs.is_complete(job.stem, ending, job.request)
        path = outputs.target_of(job.stem, ending, job.request.settings.frames)
        if not kept:
            loaded = loaded or pipeline()
            drawn = loaded.draw(job.request, on_progress(job))
            path = outputs.write(job.stem, ending, job.request, drawn)
        yield Finished(job=job, path=path, kept=kept, seconds=time.monotonic() - began)
