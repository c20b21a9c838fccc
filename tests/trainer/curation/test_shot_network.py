"""TransNet V2 by its own package, fed frame by frame."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support import planted_faults as planted

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation import shot_network
from videotrain_trainer.curation.scores import table as scores
from videotrain_trainer.curation.shot_network import ShotNetwork
from videotrain_trainer.errors import ConfigError

FADE = 16


def story(number: int) -> np.ndarray:
    """A cut at 70, a dissolve around 118, a cut at 150 of 165: windows end at 50, 100 and 150."""
    if number < 70:
        return planted.scene(31)(number)
    if number < 150:
        return planted.dissolve(33, FADE)(number - 70)
    return planted.scene(35)(number - 150)


def detected(frames: list[np.ndarray]) -> tuple[list[int], list[tuple[int, int]]]:
    network = ShotNetwork(0.4)
    cuts = [cut for n, frame in enumerate(frames) for cut in network.see(n, frame[..., ::-1], frame[..., 0])]
    return [*cuts, *network.finish()], network.dissolves()


def test_it_finds_what_the_package_finds_over_the_whole_video():
    frames = [story(number) for number in range(165)]
    cuts, dissolves = detected(frames)
    assert cuts == [70, 150]
    ((first, end),) = dissolves
    assert abs(first - (118 - FADE // 2)) <= 3
    assert abs(end - (118 + FADE // 2)) <= 3
    import cv2

    small = np.stack([cv2.resize(frame, shot_network.SIZE, interpolation=cv2.INTER_AREA) for frame in frames])
    one, every = shot_network.shot_network().predict_frames(torch.from_numpy(small), quiet=True)
    marked = np.flatnonzero(torch.maximum(one, every).numpy() > 0.4)
    assert marked.tolist() == [69, *range(first, end), 149]


@pytest.mark.parametrize("marked", [(49, 50), (50, 51), (49, 52), (47, 54)])
def test_a_cut_is_where_the_picture_changes_whatever_frames_around_it_are_marked(monkeypatch, marked):
    one, other = planted.scene(1), planted.scene(2)
    assert _told_of(monkeypatch, lambda n: (one if n < 50 else other)(n), marked) == ([50], [])


def test_a_short_passage_of_even_steps_is_no_cut(monkeypatch):
    one, other = (planted.scene(seed)(0).astype(float) for seed in (1, 2))

    def fade(number):
        part = min(1.0, max(0.0, (number - 47) / 4))
        return ((1 - part) * one + part * other).astype(np.uint8)

    assert _told_of(monkeypatch, fade, (48, 51)) == ([], [(48, 51)])


def _told_of(monkeypatch, scene, marked: tuple[int, int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Cuts and passages where the network marks these frames, first and end."""
    seen = np.zeros(150, np.float32)
    seen[slice(*marked)] = 1
    windows = iter(range(-shot_network.BEFORE, 150, shot_network.ASKED))

    def answer(network, frames):
        first = next(windows)
        return np.array([seen[n] if 0 <= n < 150 else 0 for n in range(first, first + shot_network.WINDOW)])

    monkeypatch.setattr(shot_network, "shot_network", lambda: None)
    monkeypatch.setattr(shot_network, "_of_transition", answer)
    return detected([scene(number) for number in range(100)])


def test_a_video_of_a_few_frames_and_one_that_ends_in_a_transition():
    assert detected([planted.scene(1)(number) for number in range(2)]) == ([], [])
    cuts, dissolves = detected([planted.dissolve(33, 40)(number) for number in range(planted.FRAMES)])
    assert cuts == []
    assert all(end < planted.FRAMES for _, end in dissolves)


def test_it_leaves_the_process_as_it_was():
    shot_network.shot_network.cache_clear()
    before = random.getstate(), torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    shot_network.shot_network()
    assert random.getstate() == before[0]
    assert torch.are_deterministic_algorithms_enabled() == before[2]


def test_a_missing_package_is_refused_before_a_video_is_read(monkeypatch):
    monkeypatch.setattr(shot_network, "MODULE", "a_package_that_nobody_has")
    with pytest.raises(ConfigError, match=r"curate.shotDetector: transnetv2 .* videotrain-trainer\[transnetv2\]"):
        scores.check(CurateTask(shot_detector="transnetv2"))
    scores.check(CurateTask())
