"""What an evaluate stage measures of drawn videos: by themselves, beside their clips, by VBench, and by people."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.evaluation import OF_ANY_VIDEOS, Preference, VBench
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SampledVideo, VideosIndex
from videotrain_trainer.checksums import read_checked, unsealed_json
from videotrain_trainer.data.buckets import Window, frame_stride
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import Frame, probe, read_covering
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing
from videotrain_trainer.evaluation import preference, vbench
from videotrain_trainer.evaluation.autoencoder import Row, to_frames
from videotrain_trainer.evaluation.metrics import described, psnr
from videotrain_trainer.evaluation.videos import CENTRE, read_frames, videos_below
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext

VIDEOS: Final = "videos/"
VBENCH: Final = "vbench/"
PREFERENCE: Final = "preference"
Unit = Callable[[], Row]
"""Measures one thing."""


def video_units(context: StageContext, store: ObjectStore) -> dict[str, Unit]:
    """All that is measured of the videos, by name; the same on every rank.

    Raises:
        ConfigError: VBench cannot run here.
        DataError: there is no video.
    """
    task = context.config.stage.evaluate
    if task is None or (task.videos is None and task.videos_uri is None):
        return {}
    videos = read_index(context.config, store).videos
    if not videos:
        raise DataError(f"{context.config.paths.videos}: the sample stage has drawn no video")
    units: dict[str, Unit] = {f"{VIDEOS}{video.number:04d}": _measured(store, video) for video in videos}
    if task.vbench is not None:
        vbench.check_installed(local_path(task.vbench.weights), "evaluate.vbench")
        for dimension in task.vbench.dimensions or (vbench.SUITE if task.vbench.suite else OF_ANY_VIDEOS):
            units[f"{VBENCH}{dimension}"] = _scored(context, store, videos, task.vbench, dimension)
    if task.preference is not None:
        units[PREFERENCE] = _compared(context, store, videos, task.preference)
    return units


def read_index(config: StageConfig, store: ObjectStore) -> VideosIndex:
    """The videos of the sample stage.

    Raises:
        DataError: it has not finished.
    """
    assert config.paths.videos is not None, "admission has seen to it"
    uri = layout.videos_index(config.paths.videos)
    try:
        return read_checked(store, uri, lambda data: VideosIndex.from_wire(unsealed_json(data)))
    except ObjectMissing as error:
        raise DataError(f"{uri}: missing; the sample stage has not finished there") from error


def _measured(store: ObjectStore, video: SampledVideo) -> Unit:
    def measure() -> Row:
        frames = read_frames(store, video.uri)
        row = described(frames)
        if video.reference_clip is not None:
            clip = clip_frames(store, video)[: len(frames)]
            row["clip_psnr"] = psnr(clip, frames[: len(clip)])
            if video.condition == "i2v_head":
                row["first_frame_psnr"] = psnr(clip[:1], frames[:1])
        return row

    return measure


def clip_frames(store: ObjectStore, video: SampledVideo) -> Frame:
    """The clip that a video was drawn from, (T, H, W, 3): thinned out, scaled and cropped as it was trained on.

    It may have fewer frames than the video.
    """
    assert video.reference_clip is not None
    data, size = store.get(video.reference_clip), (video.height, video.width)
    stride, _ = frame_stride(float(probe(data).fps))
    covering = read_covering(data, size)
    frames = min(video.frames, -(-len(covering) // stride))
    return to_frames(crop_window(covering, Window(0, frames, stride), size, CENTRE))


def _scored(
    context: StageContext, store: ObjectStore, videos: list[SampledVideo], spec: VBench, dimension: str
) -> Unit:
    def score() -> Row:
        folder = context.scratch / f"vbench-{dimension}"
        names = vbench_names(videos, spec.suite)
        _fetch(store, {name: video.uri for name, video in zip(names, videos, strict=True)}, folder / "videos")
        prompts = {name: video.prompt for name, video in zip(names, videos, strict=True)}
        try:
            return vbench.run(
                folder / "videos",
                local_path(spec.weights),
                folder / "results",
                [dimension],
                suite=spec.suite,
                prompts=prompts,
                device=context.world.device.type,
            )
        finally:
            shutil.rmtree(folder)

    return score


def vbench_names(videos: list[SampledVideo], suite: bool) -> list[str]:
    """File names: with the suite `<prompt>-<n>.mp4`, as VBench finds a prompt's videos.

    Raises:
        ConfigError: a prompt cannot be a file's name.
    """
    if not suite:
        return [f"{video.number:04d}.mp4" for video in videos]
    seen: Counter[str] = Counter()
    names = []
    for video in videos:
        if "/" in video.prompt:
            raise ConfigError(f"evaluate.vbench.suite: {video.prompt!r} is no prompt of VBench's; leave suite out")
        names.append(f"{video.prompt}-{seen[video.prompt]}.mp4")
        seen[video.prompt] += 1
    return names


def _compared(context: StageContext, store: ObjectStore, videos: list[SampledVideo], spec: Preference) -> Unit:
    def compare() -> Row:
        folder = context.scratch / PREFERENCE
        others = {Path(name).with_suffix("").as_posix(): uri for name, uri in videos_below(store, spec.videos).items()}
        ours = {f"{video.number:04d}": video for video in videos}
        shared = sorted(ours.keys() & others.keys())
        if not shared:
            raise DataError(
                f"evaluate.preference.videos: {spec.videos} has no video of a name of ours, such as {next(iter(ours))}"
            )
        try:
            run_side = _side(store, folder, context.config.run, {name: ours[name].uri for name in shared})
            other_side = _side(store, folder, spec.name, {name: others[name] for name in shared})
            prompts = {name: ours[name].prompt for name in shared}
            page, key = folder / "page", folder / "key.json"
            pairs = preference.write_comparison(run_side, other_side, prompts, page, key, spec.seed, lambda *_: None)
            output = context.config.paths.output
            for path in sorted(path for path in page.rglob("*") if path.is_file()):
                store.put(f"{layout.preference_page(output)}/{path.relative_to(page).as_posix()}", path)
            store.put(layout.preference_key(output), key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {"pairs": float(len(pairs))}

    return compare


def _side(store: ObjectStore, folder: Path, name: str, uris: Mapping[str, str]) -> preference.Side:
    # By number, since a model's name may be that of a folder or hold slashes.
    root = folder / f"side-{len(list(folder.glob('side-*')))}"
    files = {video: f"{video}{Path(uri).suffix}" for video, uri in uris.items()}
    _fetch(store, {files[video]: uri for video, uri in uris.items()}, root)
    return preference.Side(name, {video: root / file for video, file in files.items()})


def _fetch(store: ObjectStore, uris: Mapping[str, str], folder: Path) -> None:
    for name, uri in uris.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(uri))
