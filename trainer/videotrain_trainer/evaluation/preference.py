"""A page on which people say which of two videos they prefer, without knowing whose they are.

Order and sides of the pairs are drawn from a seed, each model on the left in half of the pairs. The page and its videos
name no model: files are renamed and written anew without metadata, and the key lies elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import av

from videotrain_trainer.data.video import ONE_FILE
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.evaluation.winrate import QUESTIONS

PLACE = "/*DATA*/null"
SIDES = ("left", "right")


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared: its name and its videos."""

    name: str
    videos: Mapping[str, Path]
    """By the name under which the other model has its counterpart."""


@dataclass(frozen=True)
class Pair:
    """Two videos of one prompt."""

    number: str
    name: str
    left: int
    """Number of the model on the left."""


def side_of(text: str, endings: Sequence[str]) -> Side:
    """A model's side from `NAME=FOLDER`; videos count by their path below the folder, without the ending.

    Raises:
        ConfigError: not of this form, or no folder.
        DataError: the folder has no video.
    """
    name, equals, folder = text.partition("=")
    if not equals or not name or not Path(folder).is_dir():
        raise ConfigError(f"{text!r}: write NAME=FOLDER with an existing folder of videos")
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix in endings)
    if not paths:
        raise DataError(f"{folder}: no video ({', '.join(endings)}) in this folder")
    return Side(name, {path.relative_to(root).with_suffix("").as_posix(): path for path in paths})


def draw_pairs(names: Sequence[str], seed: int) -> list[Pair]:
    """Order and sides of the pairs: a pure function of names and seed; each model is on the left equally often."""
    draw = random.Random(f"{seed}/{'/'.join(sorted(names))}")
    lefts = [number % 2 for number in range(len(names))]
    order = sorted(names)
    draw.shuffle(order)
    draw.shuffle(lefts)
    return [Pair(f"{number:03d}", name, left) for number, (name, left) in enumerate(zip(order, lefts, strict=True), 1)]


def write_comparison(
    first: Side,
    second: Side,
    prompts: Mapping[str, str],
    output: Path,
    key: Path,
    seed: int,
    tick: Callable[[int, int], None],
) -> list[Pair]:
    """Write page, videos and key.

    Args:
        first: one model.
        second: the other.
        prompts: prompt by name of the video; shown where there is one.
        output: folder for the page; what is sent to raters.
        key: file that says who is on which side; stays with whoever asks.
        seed: of order and sides.
        tick: is told how many of how many pairs are written.

    Returns:
        The pairs, in the page's order.

    Raises:
        ConfigError: the key would lie in the page's folder, or both models have one name.
        DataError: the models share no video name.
    """
    names = sorted(first.videos.keys() & second.videos.keys())
    _check(first, second, names, output, key)
    pairs = draw_pairs(names, seed)
    for number, pair in enumerate(pairs, start=1):
        for side, model in zip(SIDES, _by_side(pair, first, second), strict=True):
            source = model.videos[pair.name]
            strip(source, output / "videos" / pair.number / f"{side}{source.suffix}")
        tick(number, len(pairs))
    comparison = _identity(first, second, pairs, seed)
    _write_key(key, comparison, first, second, pairs, seed)
    shown = [_shown(pair, first, second, prompts) for pair in pairs]
    page = files("videotrain_trainer.evaluation").joinpath("preference.html").read_text("utf-8")
    (output / "index.html").write_text(page.replace(PLACE, _data(comparison, shown), 1), "utf-8")
    return pairs


def strip(source: Path, target: Path) -> None:
    """Copy a video's picture stream without metadata, which may name the model, and without sound."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            av.open(str(source), options=ONE_FILE) as old,
            av.open(str(target), "w", options={"fflags": "+bitexact"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0])
            stream.metadata.clear()
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{source}: cannot be read as a video: {error}") from error


def _check(first: Side, second: Side, names: Sequence[str], output: Path, key: Path) -> None:
    if first.name == second.name:
        raise ConfigError(f"both models are called {first.name!r}; give them different names")
    if not names:
        some = ", ".join(repr(next(iter(side.videos))) for side in (first, second))
        raise DataError(f"the folders share no video name (such as {some}); pairs are found by equal names")
    if key.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"--key: {key} lies in the folder that raters get; choose a place outside of {output}")


def _by_side(pair: Pair, first: Side, second: Side) -> tuple[Side, Side]:
    return (second, first) if pair.left else (first, second)


def _identity(first: Side, second: Side, pairs: Sequence[Pair], seed: int) -> str:
    text = json.dumps([first.name, second.name, seed, [pair.name for pair in pairs]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write_key(key: Path, comparison: str, first: Side, second: Side, pairs: Sequence[Pair], seed: int) -> None:
    models = [first.name, second.name]
    content = {
        "comparison": comparison,
        "models": models,
        "seed": seed,
        "left": {pair.number: models[pair.left] for pair in pairs},
        "videos": {pair.number: pair.name for pair in pairs},
    }
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _shown(pair: Pair, first: Side, second: Side, prompts: Mapping[str, str]) -> dict[str, str]:
    sides = _by_side(pair, first, second)
    sources = {
        side: f"videos/{pair.number}/{side}{model.videos[pair.name].suffix}"
        for side, model in zip(SIDES, sides, strict=True)
    }
    return {"pair": pair.number, "prompt": prompts.get(pair.name, ""), **sources}


def _data(comparison: str, pairs: list[dict[str, str]]) -> str:
    data: dict[str, Any] = {"comparison": comparison, "questions": dict(QUESTIONS), "pairs": pairs}
    # A prompt with </script> must not end the script that it stands in.
    return json.dumps(data, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--")
