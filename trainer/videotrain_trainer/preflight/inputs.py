"""All that a run refers to outside of itself, looked at before anything is computed: one finding for each question."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from videotrain_api.checks import CheckName, Finding, wrong
from videotrain_api.config.resolve import resolve
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.references import WEIGHTS, Reference, references
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.data.buckets import row_name
from videotrain_trainer.errors import (
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
    TrainerError,
)
from videotrain_trainer.evaluation.videos import videos_below
from videotrain_trainer.preflight import data
from videotrain_trainer.preflight.packages import wanted_packages
from videotrain_trainer.preflight.weights import check_model
from videotrain_trainer.storage import ObjectStore


@dataclass
class InputCheck:
    """The questions that the store, the models and the data answer.

    Args:
        run: whose manifest is accepted.
        store: object store of the run.
        first: stages before this one are complete; what only they read may be gone.
    """

    run: VideoTrainingRun
    store: ObjectStore
    first: int = 0
    stages: Sequence[StageConfig] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = resolve(self.run)

    def findings(self) -> Iterator[Finding]:
        """One for every question, in the order of the manifest. Nothing is raised for what a user can mend."""
        storage = self.run.spec.storage
        own = list(self._ask("storage", "spec.storage.uri", storage.uri, self._storage))
        yield from own
        for package in wanted_packages(self.run):
            seen = f"needs the Python package {package.module}"
            if package.there:
                yield Finding(check="packages", path=package.path, value=package.value, verdict="ok", message=seen)
                continue
            missing = (
                f"{seen}, which is not installed where this ran: build an image with {package.extra}, or change it"
            )
            yield _refusal("packages", package.path, package.value, missing, ExitCode.CONFIG)
        for reference in references(self.run):
            if not any(index >= self.first for index in reference.stages):
                continue
            if wrong(own) and reference.uri.startswith("s3://"):
                later = "not looked at, since spec.storage.uri cannot be"
                yield Finding(check="location", path=reference.path, value=reference.uri, verdict="open", message=later)
                continue
            yield from self._of(reference)
        yield from self._rows_of_curation()

    def _of(self, reference: Reference) -> Iterator[Finding]:
        path, uri = reference.path, reference.uri
        readers = [self.stages[index] for index in reference.stages]
        if reference.role in WEIGHTS:
            yield from self._ask("weights", path, uri, lambda: check_model(reference, readers, self.store))
        elif reference.role == "captions":
            yield from self._ask("data", path, uri, lambda: data.captions_told(reference, self.run, self.store))
        elif reference.role == "videos":
            yield from self._videos(reference)
        elif reference.role == "clips":
            yield from self._clips(reference)
        elif reference.role == "latents":
            yield from self._latents(reference, readers)
        elif reference.role == "folder":
            yield from self._ask("data", path, uri, lambda: f"{len(videos_below(self.store, uri)):,} videos")
        else:
            yield from self._ask("location", path, uri, lambda: f"{self.store.stat(uri).size:,} bytes")

    def _videos(self, reference: Reference) -> Iterator[Finding]:
        found = re.fullmatch(r"spec\.dataset\.sources\[(\d+)\]\.uri", reference.path)
        name = self.run.spec.dataset.sources[int(found[1])].name if found else ""
        videos: list[Any] = []
        clips: list[data.ClipSize] = []
        task = next(stage.curate for stage in self.run.spec.stages if stage.curate is not None)

        def look() -> str:
            videos.extend(data.some_videos(self.run, name))
            clips.extend(data.clips_of(videos, task))
            more = " or more" if len(videos) == data.PROBED else ""
            return f"{len(videos)}{more} videos" + (f", {len(clips)} of them decoded" if clips else "")

        yield from self._ask("data", reference.path, reference.uri, look)
        # What was not looked at may fit.
        if clips and len(videos) < data.PROBED and not self.run.spec.dataset.sources:
            yield from self._unfit(self._after_curation(), clips, "no video here gives a clip that fits")

    def _after_curation(self) -> list[data.Row]:
        first = next(i for i, stage in enumerate(self.run.spec.stages) if stage.curate is not None)
        return data.rows_of(self.run, self.stages, range(first + 1, len(self.stages)))

    def _rows_of_curation(self) -> Iterator[Finding]:
        """Rows for which curation cuts every clip too short, or scales it too small."""
        task = next((stage.curate for stage in self.run.spec.stages if stage.curate is not None), None)
        if task is not None and self.run.spec.dataset.clips is None:
            reason = f"no clip fits that curation may make (maxSeconds {task.max_seconds:g}, longSide {task.long_side})"
            yield from self._unfit(self._after_curation(), [data.largest_possible(task)], reason)

    def _clips(self, reference: Reference) -> Iterator[Finding]:
        clips: list[data.ClipSize] = []

        def look() -> str:
            clips.extend(data.curated_clips(reference.uri, self.store))
            return f"a curated set with clips of {len(clips)} sizes"

        yield from self._ask("data", reference.path, reference.uri, look)
        if clips:
            rows = data.rows_of(self.run, self.stages, range(len(self.stages)))
            yield from self._unfit(rows, clips, f"no clip of {reference.uri} fits")

    def _latents(self, reference: Reference, readers: Sequence[StageConfig]) -> Iterator[Finding]:
        samples: dict[str, int] = {}

        def look() -> str:
            samples.update(data.encoded_rows(reference.uri, readers, self.store))
            return ", ".join(f"{row}: {count:,} samples" for row, count in samples.items())

        yield from self._ask("data", reference.path, reference.uri, look)
        if samples and not self.run.spec.dataset.sources:
            rows = data.rows_of(self.run, self.stages, reference.stages)
            empty = list(data.rows_without_samples(rows, samples))
            there = f"{reference.uri} has no sample of it; it was encoded for {', '.join(samples)}"
            yield from self._told(rows, empty, there)

    def _unfit(self, rows: Sequence[data.Row], clips: Sequence[data.ClipSize], reason: str) -> Iterator[Finding]:
        empty = list(data.without_clips(rows, clips))
        seen = f": {data.largest(clips)}" if len(clips) > 1 else ""
        yield from self._told(
            rows, empty, f"{reason}{seen}; lower frames or resolution, or give longer or larger videos"
        )

    @staticmethod
    def _told(rows: Sequence[data.Row], empty: Sequence[data.Row], reason: str) -> Iterator[Finding]:
        """A stage all of whose rows are empty cannot begin; one of several rows only trains nothing."""
        stage_of = {row.path: row.path.split("]")[0] for row in rows}
        alive = {stage_of[row.path] for row in rows if row not in empty}
        for row in empty:
            name = row_name(row.bucket)
            if stage_of[row.path] in alive:
                yield Finding(check="buckets", path=row.path, value=name, verdict="warning", message=reason)
            else:
                yield _refusal("buckets", row.path, name, reason, ExitCode.DATA)

    def _storage(self) -> str:
        self.store.check()
        return "the bucket can be listed"

    @staticmethod
    def _ask(check: CheckName, path: str, value: str, look: Callable[[], str]) -> Iterator[Finding]:
        """The answer to one question; what the trainer would raise is one."""
        try:
            yield Finding(check=check, path=path, value=value, verdict="ok", message=look())
        except ObjectMissing as error:
            yield _refusal("location", path, value, f"{error}; correct {path}, or put it there", ExitCode.DATA)
        except (StorageDenied, StorageUnavailable) as error:
            yield _refusal("location", path, value, str(error), error.exit_code)
        except TrainerError as error:
            yield _refusal(check, path, value, str(error), error.exit_code)


def _refusal(check: CheckName, path: str, value: object, message: str, code: ExitCode) -> Finding:
    # Messages of the trainer often begin with the field or the value, which stand beside it here.
    text = message.removeprefix(f"{path}: ").removeprefix(f"{value}: ")
    return Finding(check=check, path=path, value=value, verdict="wrong", message=text, code=code)
