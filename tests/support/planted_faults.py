"""Videos with faults that curation must find, painted from noise: layered textures under a moving camera.

Every video is small, so that hundreds fit into a test, and every number comes from its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from videotrain_trainer.data.video import write_mp4

HEIGHT, WIDTH, FPS, FRAMES = 180, 320, 24, 48
Scene = Callable[[int], np.ndarray]
"""A frame, (HEIGHT, WIDTH, 3) uint8, by its number."""


def canvas(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of many scales, as natural pictures have them, in colours of its own."""
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (3, 6, 12, 24, 48, 96):
        coarse = draw.normal(size=(cells, max(2, cells * width // height), 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.7
    picture = picture - picture.mean(axis=(0, 1))
    tint = draw.uniform(80, 170, size=3)
    return np.clip(picture / picture.std() * draw.uniform(30, 45) + tint, 0, 255)


def scene(seed: int, speed: float | None = None) -> Scene:
    """A camera that pans slowly over a canvas, two things that cross it, and a sensor's noise."""
    draw = np.random.default_rng(seed)
    wide = canvas(draw, HEIGHT * 2, WIDTH * 2)
    speed = draw.uniform(0.6, 2.5) if speed is None else speed
    angle = draw.uniform(0, 2 * np.pi)
    step = speed * np.array([np.cos(angle), np.sin(angle)])
    things = [(canvas(draw, 48, 48), draw.uniform(40, 130, 2), draw.uniform(-2, 2, 2)) for _ in range(2)]

    def frame(number: int) -> np.ndarray:
        at = np.array([WIDTH / 2, HEIGHT / 2]) + step * (number - FRAMES / 2)
        move = np.array([[1, 0, -at[0]], [0, 1, -at[1]]], np.float32)
        picture = cv2.warpAffine(wide, move, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for texture, start, pace in things:
            left, top = np.clip(start + pace * number, 0, (WIDTH - 48, HEIGHT - 48)).astype(int)
            picture[top : top + 48, left : left + 48] = texture
        noise = np.random.default_rng((seed, number)).normal(0, 2, picture.shape)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return frame


def cut(seed: int) -> Scene:
    """One scene, and at the middle another."""
    first, second = scene(seed), scene(seed + 5000)
    return lambda number: first(number) if number < FRAMES else second(number - FRAMES)


def dissolve(seed: int, length: int) -> Scene:
    """One scene that fades into another over `length` frames in the middle. The other begins with the fade: later its
    things rest at the borders, as marks do.
    """
    first, second, begin = scene(seed), scene(seed + 5000), FRAMES - length // 2

    def frame(number: int) -> np.ndarray:
        share = np.clip((number - FRAMES + length / 2) / length, 0, 1)
        return ((1 - share) * first(number) + share * second(max(0, number - begin))).astype(np.uint8)

    return frame


def still(seed: int) -> Scene:
    """A photograph shown as a video."""
    inner = scene(seed)
    picture = inner(0)
    return lambda number: picture


def shaken(seed: int) -> Scene:
    """A hand that trembles by some percent of the picture's height."""
    draw = np.random.default_rng(seed)
    offsets = draw.normal(0, 5, size=(FRAMES, 2))
    inner = scene(seed)

    def frame(number: int) -> np.ndarray:
        move = np.array([[1, 0, offsets[number][0]], [0, 1, offsets[number][1]]], np.float32)
        return cv2.warpAffine(inner(number), move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)

    return frame


def blurred(seed: int) -> Scene:
    """Out of focus."""
    inner = scene(seed)
    return lambda number: cv2.GaussianBlur(inner(number), (0, 0), 9)


def bordered(seed: int, above: int, side: int) -> Scene:
    """Black bars of `above` lines above and below and `side` columns at both sides, as codecs blacken: to 16 or so."""
    inner = scene(seed)

    def frame(number: int) -> np.ndarray:
        picture = np.full((HEIGHT, WIDTH, 3), 4, np.uint8)
        small = cv2.resize(inner(number), (WIDTH - 2 * side, HEIGHT - 2 * above), interpolation=cv2.INTER_AREA)
        picture[above : HEIGHT - above, side : WIDTH - side] = small
        return picture

    return frame


def written(seed: int) -> Scene:
    """Large subtitles."""
    inner, words = scene(seed), ["BREAKING NEWS TODAY", "SUBSCRIBE NOW", "LIMITED OFFER 50%", "Visit example.org"]

    def frame(number: int) -> np.ndarray:
        picture = inner(number)
        for line in range(3):
            text, at = words[(seed + line) % len(words)], (12, 60 + 45 * line)
            cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.85, (0, 0, 0), 6, cv2.LINE_AA)
            cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.85, (255, 255, 255), 2, cv2.LINE_AA)
        return picture

    return frame


def marked(seed: int) -> Scene:
    """A half transparent logo in a corner."""
    draw = np.random.default_rng(seed)
    logo = np.zeros((HEIGHT, WIDTH), np.uint8)
    left, top = int(draw.choice([12, WIDTH - 62])), int(draw.choice([12, HEIGHT - 44]))
    cv2.circle(logo, (left + 14, top + 16), 12, 255, 3)
    cv2.putText(logo, "vt", (left + 28, top + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2)
    inner, strength = scene(seed, draw.uniform(1.5, 2.5)), draw.uniform(0.5, 0.8)

    def frame(number: int) -> np.ndarray:
        share = (strength / 255 * logo)[..., None]
        return ((1 - share) * inner(number) + share * 255).astype(np.uint8)

    return frame


def paint(path: Path, scene: Scene, frames: int = FRAMES, size: tuple[int, int] | None = None, crf: int = 20) -> Path:
    """Write it; `size` (height, width) to encode at another one."""

    def pictures() -> Iterator[np.ndarray]:
        for number in range(frames):
            picture = scene(number)
            yield cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA) if size else picture

    write_mp4(pictures(), path, Fraction(FPS), crf=crf)
    return path
