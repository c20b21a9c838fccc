"""Settings near a stage's own that a GPU's memory has room for, of stages that handle pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, Final

from videotrain_api.config import presets
from videotrain_api.config.aspect import RESOLUTION_NAMES
from videotrain_api.cost import flops
from videotrain_api.cost.clip_stage_memory import (
    AutoencoderMemory,
    CodingMemory,
    drawing,
    drawing_between_steps,
    encoding,
)
from videotrain_api.cost.nearest import Change, less_kept
from videotrain_api.cost.stage_memory import RowMemory, RowSetting, worlds_of
from videotrain_api.resource.architecture import AutoencoderSpec, AutoencoderTiling
from videotrain_api.resource.stages import Bucket
from videotrain_api.resource.trainrun import VideoTrainingRun

TILES: Final = ((256, None), (256, 32), (128, None), (128, 32))
"""Pixels and frames of tiles that are proposed, the largest first."""
Way = tuple[str, CodingMemory]
"""A change in the fields of the manifest, and what is needed with it."""


def training(table: AutoencoderMemory) -> Iterator[tuple[Change, RowMemory]]:
    """Changes that make an autoencoder stage fit in its smallest world, one of each kind.

    The first keep the samples of a step and their sizes; the others train on smaller clips, or on shorter ones.
    """
    gpus, setting, row = worlds_of(table.run, table.stage)[0], table.setting(), table.task.bucket

    def first(changes: Iterable[Change]) -> Iterator[tuple[Change, RowMemory]]:
        for change in changes:
            there = table.of(gpus, _set(setting, change), _sized(row, change))
            if there.fits:
                yield change, there
                return

    policies: list[Change] = [{"recompute": policy} for policy in less_kept(setting)]
    same = [*first(policies), *first(_smaller_batches(setting))]
    yield from same or first({**policy, **change} for policy in policies for change in _smaller_batches(setting))
    yield from first({"frames": frames} for frames in _shorter(row.frames, table.spec))
    yield from first({"resolution": name} for name in _smaller(row, table.spec.spatial_compression))


def _set(setting: RowSetting, change: Change) -> RowSetting:
    of_row = {name: value for name, value in change.items() if name not in ("frames", "resolution")}
    return replace(setting, **of_row)


def _sized(row: Bucket, change: Change) -> Bucket:
    return row.model_copy(update={name: change[name] for name in ("frames", "resolution") if name in change})


def _smaller_batches(setting: RowSetting) -> Iterator[dict[str, Any]]:
    samples = setting.batch_size * setting.micro_batches
    for size in range(setting.batch_size - 1, 0, -1):
        if samples % size == 0:
            yield {"batch_size": size, "micro_batches": samples // size}


def _shorter(frames: int, spec: AutoencoderSpec) -> Iterator[int]:
    """Lengths below one that the autoencoder codes and decodes, the longest first."""
    yield from (count for count in range(frames - 1, 1, -1) if spec.time.draws(count))


def _smaller(row: Bucket, grid: int) -> Iterator[str]:
    """Area classes below a row's, the largest first, that the grid of the models allows."""
    below = RESOLUTION_NAMES[: RESOLUTION_NAMES.index(row.resolution)]
    yield from (name for name in reversed(below) if int(name.removesuffix("px")) % grid == 0)


def encoding_sizes(run: VideoTrainingRun, index: int, row: Bucket) -> Iterator[Way]:
    """Tiles in which a row's clips can be encoded; shorter clips and smaller ones that can be without."""
    spec = presets.complete_autoencoder(run.spec.autoencoder)
    for text, tiled in _tiles(spec):
        there = encoding(run, index, row, tiled)
        if there.fits:
            yield text, there
            break
    grid = flops.grid(presets.complete_transformer(run.spec.model), spec)
    frames = ({"frames": count, "min_frames": None} for count in _shorter(row.frames, spec))
    for name, changes in (("frames", frames), ("resolution", ({"resolution": s} for s in _smaller(row, grid)))):
        for change in changes:
            there = encoding(run, index, row.model_copy(update=change), spec)
            if there.fits:
                yield f"{name}: {change[name]} in the rows of train stages", there
                break


def drawing_sizes(run: VideoTrainingRun, index: int) -> Iterator[Way]:
    """Whether offloading, tiles, shorter videos or smaller ones make a sample stage fit."""
    spec, task = presets.complete_autoencoder(run.spec.autoencoder), run.spec.stages[index].sample
    assert task is not None, "asked of sample stages"
    grid = flops.grid(presets.complete_transformer(run.spec.model), spec)
    offloads = (False, True)[task.offload :]
    for offload, (text, tiled) in product(offloads, [("", spec), *_tiles(spec)]):
        there = drawing(run, index, task.model_copy(update={"offload": offload}), tiled)
        if there.fits:
            changes = ["offload: true"] * (offload and not task.offload) + [text] * bool(text)
            yield " and ".join(changes), there
            break
    sized = Bucket(resolution=task.resolution, frames=1, batch_size=1)
    frames = ({"frames": count} for count in _shorter(task.frames, spec))
    for name, others in (("frames", frames), ("resolution", ({"resolution": s} for s in _smaller(sized, grid)))):
        for change in others:
            there = drawing(run, index, task.model_copy(update=change), spec)
            if there.fits:
                yield f"{name}: {change[name]}", there
                break


def drawing_between_steps_sizes(run: VideoTrainingRun, index: int) -> Iterator[Way]:
    """Shorter videos of `train.samples`, and smaller ones, that fit beside the engine."""
    spec, stage = presets.complete_autoencoder(run.spec.autoencoder), run.spec.stages[index]
    task = stage.train.samples if stage.train else None
    assert task is not None, "asked of train stages that draw"
    grid = flops.grid(presets.complete_transformer(run.spec.model), spec)
    sized = Bucket(resolution=task.resolution, frames=1, batch_size=1)
    frames = ({"frames": count} for count in _shorter(task.frames, spec))
    for name, others in (("frames", frames), ("resolution", ({"resolution": s} for s in _smaller(sized, grid)))):
        for change in others:
            there = drawing_between_steps(run, index, task.model_copy(update=change))
            if there.fits:
                yield f"{name}: {change[name]}", there
                break


def _tiles(spec: AutoencoderSpec) -> Iterator[tuple[str, AutoencoderSpec]]:
    for pixels, frames in TILES:
        tiling = AutoencoderTiling(pixels=pixels, frames=frames)
        if tiling != spec.tiling and pixels % spec.spatial_compression == 0:
            text = f"spec.autoencoder.tiling: {{pixels: {pixels}" + (f", frames: {frames}}}" if frames else "}")
            yield text, spec.model_copy(update={"tiling": tiling})
