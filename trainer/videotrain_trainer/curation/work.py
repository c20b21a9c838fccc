"""Curation as units of work: a raw video each, found in the folder, and what does one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from videotrain_api.resource.stages import CurateTask, ImageModel
from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_trainer.curation.bounds import LOOSE_FIELDS, refuse_unmeasured
from videotrain_trainer.curation.caption_table import read_captions
from videotrain_trainer.curation.clips import FILE_VERSION, IN_PLACE
from videotrain_trainer.curation.sandbox import MOST_MEMORY, Sandbox, container_memory
from videotrain_trainer.curation.scores.interface import Columns
from videotrain_trainer.curation.source import RawVideo, VideoFolder, content_hash
from videotrain_trainer.curation.source_forms import open_sources
from videotrain_trainer.curation.stills import load_stills
from videotrain_trainer.engines.interface import Tick, Unit, UnitRange, Used, cut_ranges
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.worker.linux import container_cpus

LATER_FIELDS = ("shot_detector", "shot_probability", "image_model", IN_PLACE)
"""Of a task, younger than the names of units. At their defaults they are left out of names, so that an upgrade reads no
video again."""
STEP_BYTES = 16 * 1024 * 1024
"""A raw video counts as one step of progress for every such piece that it has or begins."""


class Looker(Protocol):
    """A model that looks at stills of clips."""

    def columns(self, stills: NDArray[np.uint8], /) -> Columns:
        """What it sees in stills, (K, H, W, 3) in RGB, by column of the catalogue."""


@dataclass(frozen=True)
class CurateWork:
    """Curation of raw videos, one a unit."""

    dataset: Dataset
    storage: Storage
    output: str
    """Prefix of the stage's output."""
    task: CurateTask
    look: Callable[[ImageModel, ObjectStore, Path], Looker]
    """Opens the task's image model, if it has one. A function of a module, since workers of Ray are sent this."""
    units_at_once: ClassVar[int] = 1
    gpus: ClassVar[int] = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens sources of its own."""
        return CurateWork, (self.dataset, self.storage, self.output, self.task, self.look)

    @cached_property
    def sources(self) -> dict[str, VideoFolder]:
        """By name, for all workers of a process: what one of them has to read on the way to its video, others need."""
        return open_sources(self.dataset, self.storage)

    def open(self, scratch: Path) -> _Curator:
        """A decoder process, started when the first video comes."""
        return _Curator(self, scratch)


class _Curator:
    """Does raw videos, one after the other."""

    def __init__(self, work: CurateWork, scratch: Path) -> None:
        self._work = work
        self._scratch = scratch
        self._store = ObjectStore.for_storage(work.storage)
        self._sources = work.sources
        self._sandbox = Sandbox()
        model = work.task.image_model
        self._model = work.look(model, self._store, scratch.parent / "models") if model is not None else None

    def do(self, unit: Unit, tick: Tick) -> dict[str, Any]:
        """One raw video; its clips are in the store when this returns."""
        video = RawVideo.from_fields(unit.facts)
        if pattern := _unwanted(video, self._work.task):
            dropped = ["source", f"fits {pattern!r} of dropSources", None, None]
            return {"name": video.name, "content": "", "caption": "", "dropped": dropped, "clips": []}
        out, source, place = self._clean_scratch(), self._sources[video.source], video.place
        task = self._work.task if place else self._work.task.model_copy(update={IN_PLACE: False})
        path = source.fetch(video, self._scratch)
        content = content_hash(path)
        reading = 0.5 if self._model is not None else 1.0  # of the unit; the other half is looking at its clips
        with disk_full_is_clear(self._scratch):
            done = lambda share: tick(int(reading * share * unit.weight))  # noqa: E731
            result = self._sandbox.curate(path, content, out, task, done)
        for number, clip in enumerate(result["clips"], start=1):
            if clip["kept"]:  # by what was read; bounds on its scores are applied once all are known
                file = out / f"{clip['uid']}.mp4"
                if self._model is not None:
                    clip |= self._model.columns(load_stills(file))
                    refuse_unmeasured([clip], self._work.task)  # at the first clip, not after the last
                    tick(int((reading + (1 - reading) * number / len(result["clips"])) * unit.weight))
                if clip[IN_PLACE]:
                    clip["uri"] = place
                else:
                    self._store.put(f"{self._work.output}/clips/{clip['uid']}.mp4", file)
        return {"name": video.name, "content": content, "caption": source.caption(video), **result}

    def used(self) -> Used:
        """Nothing is measured."""
        return {}

    def close(self) -> None:
        """End the decoder process and remove temporary files."""
        self._sandbox.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _clean_scratch(self) -> Path:
        shutil.rmtree(self._scratch, ignore_errors=True)
        out = self._scratch / "clips"
        with disk_full_is_clear(out):
            out.mkdir(parents=True)
        return out


def find_ranges(work: CurateWork) -> Iterator[UnitRange]:
    """Ranges of raw videos, each as soon as its listing is believed."""
    return cut_ranges(_units(work))


def decoders() -> int:
    """Videos that a pod curates at the same time: one on every core, as far as all decoders have room."""
    return max(1, min(container_cpus(), container_memory() // MOST_MEMORY))


def _units(work: CurateWork) -> Iterator[Unit]:
    """A unit per raw video, each as soon as its listing is believed; text files are read with their videos."""
    dataset = work.dataset
    captions = dict(dataset.captions)
    if dataset.caption_table is not None:
        store = ObjectStore.for_storage(work.storage)
        captions = read_captions(store, dataset.caption_table, dataset.videos) | captions
    # Other bounds on scores and another engine find the same results again, as a release does that has more fields.
    reading = work.task.model_dump(mode="json", exclude={*LOOSE_FIELDS, "engine", *_unset_later_fields(work.task)})
    sources = open_sources(dataset, work.storage).values()
    for video in chain.from_iterable(source.videos(captions) for source in sources):
        facts = [FILE_VERSION, video.name, video.found.size, video.tag, video.caption, reading]
        facts.append(_unwanted(video, work.task))
        name = xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
        yield Unit(str(name), 1 + video.found.size // STEP_BYTES, video.fields())


def _unset_later_fields(task: CurateTask) -> list[str]:
    default = CurateTask()
    return [name for name in LATER_FIELDS if getattr(task, name) == getattr(default, name)]


def _unwanted(video: RawVideo, task: CurateTask) -> str | None:
    """The pattern of drop_sources that a video's path fits."""
    return next((pattern for pattern in task.drop_sources if fnmatchcase(video.name, pattern)), None)
