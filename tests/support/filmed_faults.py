"""Videos with faults that curation must find, filmed otherwise than those its bounds were found with.

Photographs under a camera that pans, zooms and turns, water, skies of smooth gradients with things that cross them; a
sensor whose noise grows with the light; letters and logos set in a real typeface. Every number comes from its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from support.planted_faults import Scene

HEIGHT, WIDTH, FPS, FRAMES = 270, 480, 25, 50
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "grass", "gravel", "brick", "retina", "hubble_deep_field")


@cache
def photograph(name: str) -> np.ndarray:
    """(900, 1600, 3) float32."""
    picture = getattr(data, name)()
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture[..., :3]
    height, width = picture.shape[:2]
    scale = max(900 / height, 1600 / width)
    size = (max(1600, round(width * scale)), max(900, round(height * scale)))
    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    top, left = (large.shape[0] - 900) // 2, (large.shape[1] - 1600) // 2
    return large[top : top + 900, left : left + 1600]


def sensor(picture: np.ndarray, seed: int, number: int, gain: float = 1.0) -> np.ndarray:
    """What a sensor makes of it: noise that grows with the light."""
    noise = np.random.default_rng((seed, number, 7)).normal(size=picture.shape).astype(np.float32)
    return np.clip(picture + gain * noise * np.sqrt(1 + np.clip(picture, 0, 255) / 20), 0, 255).astype(np.uint8)


def panned(seed: int) -> Scene:
    """A photograph under a camera that pans, zooms and turns slowly."""
    draw = np.random.default_rng((seed, 1))
    wide = photograph(PHOTOGRAPHS[seed % len(PHOTOGRAPHS)])
    if draw.random() < 0.5:
        wide = wide[:, ::-1]
    wide = np.ascontiguousarray(np.clip(wide * draw.uniform(0.8, 1.1, 3).astype(np.float32), 0, 255))
    zoom, grow = draw.uniform(1.1, 2.0), draw.choice([-1, 1]) * draw.uniform(0.0005, 0.004)
    speed, angle, turn = draw.uniform(0.7, 4.0), draw.uniform(0, 2 * np.pi), draw.uniform(-0.06, 0.06)
    centre = np.array([800.0, 450.0]) + draw.uniform(-60, 60, 2)

    def frame(number: int) -> np.ndarray:
        scale = zoom * (1 + grow) ** number
        middle = centre + speed * (number - FRAMES / 2) * np.array([np.cos(angle), np.sin(angle)])
        move = cv2.getRotationMatrix2D(middle.tolist(), turn * (number - FRAMES / 2), 1 / scale)
        move[:, 2] += np.array([WIDTH / 2, HEIGHT / 2]) - middle
        flags = cv2.INTER_AREA if scale > 1.5 else cv2.INTER_LINEAR
        picture = cv2.warpAffine(wide, move, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)
        return sensor(picture, seed, number)

    return frame


def water(seed: int) -> Scene:
    """Waves of many lengths that run under a fixed camera, lit from above."""
    draw = np.random.default_rng((seed, 2))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    depth = 0.3 + rows / HEIGHT
    waves = [
        (draw.uniform(0.02, 0.35), draw.uniform(-np.pi / 3, np.pi / 3), draw.uniform(0, 6), draw.uniform(0.2, 0.6))
        for _ in range(24)
    ]
    colour = draw.uniform([20, 70, 90], [70, 130, 170]).astype(np.float32)

    def frame(number: int) -> np.ndarray:
        height = sum(
            np.sin(k / depth * (columns * np.sin(a) + rows * 3 * np.cos(a)) + p + pace * number) / (1 + 6 * k)
            for k, a, p, pace in waves
        )
        light = 60 * height[..., None] * np.array([0.8, 1.0, 1.0]) + 40 * np.maximum(0, height - 1)[..., None]
        return sensor((colour + light + 20 * depth[..., None]).astype(np.float32), seed, number)

    return frame


def sky(seed: int) -> Scene:
    """A smooth gradient, a skyline of houses under a slow pan, and balls that fly across."""
    draw = np.random.default_rng((seed, 3))
    above, below = draw.uniform([40, 70, 130], [120, 150, 210]), draw.uniform(140, 230, 3)
    share = np.linspace(0, 1, HEIGHT)[:, None, None]
    gradient = np.broadcast_to((1 - share) * above + share * below, (HEIGHT, WIDTH, 3)).astype(np.float32)
    houses = [(draw.uniform(-200, 800), draw.uniform(30, 90), draw.uniform(60, 160)) for _ in range(16)]
    paints = draw.uniform(30, 160, (16, 3))
    balls = [(draw.uniform(0, [WIDTH, 120]), draw.uniform(1.5, 5), draw.uniform(10, 26)) for _ in range(4)]
    hues, speed = draw.uniform(30, 255, (4, 3)), draw.choice([-1, 1]) * draw.uniform(1, 3)

    def frame(number: int) -> np.ndarray:
        picture = gradient.copy()
        for (left, wide, tall), paint in zip(houses, paints, strict=True):
            at = left + speed * number
            corners = np.array([[at, HEIGHT - tall], [at + wide, HEIGHT - tall], [at + wide, HEIGHT], [at, HEIGHT]])
            cv2.fillPoly(picture, [np.round(corners * 16).astype(np.int32)], paint.tolist(), cv2.LINE_AA, 4)
            for row in range(int(tall) // 22):
                for column in range(int(wide) // 18):
                    x, y = at + 6 + column * 18, HEIGHT - tall + 8 + row * 22
                    spot = np.round(np.array([[x, y], [x + 8, y], [x + 8, y + 11], [x, y + 11]]) * 16).astype(np.int32)
                    cv2.fillPoly(picture, [spot], (0.5 * paint + 110).tolist(), cv2.LINE_AA, 4)
        for (start, pace, radius), hue in zip(balls, hues, strict=True):
            x, y = (start[0] + pace * number) % WIDTH, start[1] + 20 * np.sin(number / 9 + radius)
            cv2.circle(picture, (round(16 * x), round(16 * y)), round(16 * radius), hue.tolist(), -1, cv2.LINE_AA, 4)
        return sensor(picture, seed, number)

    return frame


def scene(seed: int) -> Scene:
    """A good clip: half of them photographs, the others water and skies."""
    return (panned, water, panned, sky)[seed % 4](seed)


def cut(seed: int) -> Scene:
    """One scene, and at the middle another."""
    first, second = scene(seed), scene(seed + 5001)
    return lambda number: first(number) if number < FRAMES else second(number - FRAMES)


def dissolve(seed: int, length: int) -> Scene:
    """One scene that fades into another over `length` frames in the middle."""
    first, second = panned(2 * seed), panned(2 * seed + 5001)

    def frame(number: int) -> np.ndarray:
        share = np.clip((number - FRAMES + length / 2) / length, 0, 1)
        return ((1 - share) * first(number) + share * second(number)).astype(np.uint8)

    return frame


def still(seed: int) -> Scene:
    """A tripod before a wall: nothing moves but the sensor's noise."""
    picture = scene(seed)(0).astype(np.float32)
    return lambda number: sensor(picture, seed, number, 0.7 * (seed % 3))


def shaken(seed: int) -> Scene:
    """A hand that trembles, in place and by angle."""
    draw = np.random.default_rng((seed, 4))
    offsets = draw.normal(0, draw.uniform(0.015, 0.04) * HEIGHT, size=(2 * FRAMES, 2))
    angles = draw.normal(0, 0.5, size=2 * FRAMES)
    inner = panned(seed)

    def frame(number: int) -> np.ndarray:
        move = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), float(angles[number]), 1.08)
        move[:, 2] += offsets[number]
        return cv2.warpAffine(inner(number), move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)

    return frame


def blurred(seed: int) -> Scene:
    """Out of focus before the sensor, so that its noise stays sharp."""
    inner, width = panned(seed), np.random.default_rng((seed, 5)).uniform(7, 11)

    def frame(number: int) -> np.ndarray:
        soft = cv2.GaussianBlur(inner(number).astype(np.float32), (0, 0), width)
        return sensor(soft, seed, number, 0.3)

    return frame


def letterboxed(seed: int, above: int, side: int) -> Scene:
    """Bars that cover the picture, black as a sensor or an editor leaves it: 0 to 6 with grain."""
    inner, draw = scene(seed), np.random.default_rng((seed, 6))
    black = draw.uniform(0, 6)

    def frame(number: int) -> np.ndarray:
        picture = np.clip(np.random.default_rng((seed, number, 8)).normal(black, 1, (HEIGHT, WIDTH, 1)), 0, 255)
        picture = np.repeat(picture, 3, 2).astype(np.uint8)
        part = slice(above, HEIGHT - above), slice(side, WIDTH - side)
        picture[part] = inner(number)[part]
        return picture

    return frame


def _letters(size: int, draw: Callable[[ImageDraw.ImageDraw, ImageFont.FreeTypeFont], None]) -> np.ndarray:
    """Coverage, (HEIGHT, WIDTH, 1) from 0 to 1, of what is set in Pillow's own typeface."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    draw(ImageDraw.Draw(mask), font)
    return np.asarray(mask, np.float32)[..., None] / 255


def written(seed: int) -> Scene:
    """A title, or subtitles on a dark band."""
    inner, draw = scene(seed), np.random.default_rng((seed, 9))
    words = ["The Long Way Home", "Chapter Three", "Follow for more!", "50% OFF TODAY"][seed % 4]
    band = bool(draw.random() < 0.5)
    size, top = int(draw.integers(40, 52)), int(draw.integers(20, HEIGHT - 130))

    def set_words(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
        pen.text((20, top), words, fill=255, font=font)
        pen.text((20, top + size + 8), words.upper()[:16], fill=255, font=font)

    coverage = _letters(size, set_words)

    def frame(number: int) -> np.ndarray:
        picture = inner(number).astype(np.float32)
        if band:
            picture[top - 6 : top + 2 * size + 24] *= 0.3
        else:
            picture *= 1 - 0.6 * cv2.GaussianBlur(coverage, (0, 0), 3)[..., None]
        return np.clip(picture * (1 - coverage) + 245 * coverage, 0, 255).astype(np.uint8)

    return frame


def marked(seed: int) -> Scene:
    """The name of an agency in a corner or in the middle, half transparent, white or dark, over a moving picture."""
    draw = np.random.default_rng((seed, 10))
    inner, name = panned(seed), ["STOCKPIX", "@filmcat", "© nature tv", "PREVIEW"][seed % 4]
    size = int(draw.integers(20, 30))
    left = int(draw.choice([14, WIDTH // 2 - 60, WIDTH - 150]))
    top = int(draw.choice([12, HEIGHT // 2 - 15, HEIGHT - 44]))
    coverage = _letters(size, lambda pen, font: pen.text((left, top), name, fill=255, font=font))
    share, colour = draw.uniform(0.6, 0.9) * coverage, float(draw.choice([235, 250]))
    return lambda number: np.clip((1 - share) * inner(number) + share * colour, 0, 255).astype(np.uint8)
