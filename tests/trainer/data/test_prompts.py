"""One spelling of frame rate and motion score for training and sampling, beside the two of the published code."""

import json
from pathlib import Path

import pytest

from videotrain_trainer.data.buckets import frame_stride
from videotrain_trainer.data.prompts import prompt_text, split_suffix

TEXTS = json.loads((Path(__file__).parents[2] / "fixtures/text.json").read_text())


def trained(case):
    rate = None if case["fps"] is None or case["fps_max"] is None else frame_stride(case["fps"])[1]
    style = "fps-motion" if case["use_motion"] else "fps"
    return prompt_text(case["caption"], style, rate, case["motion"])


@pytest.mark.parametrize("case", TEXTS["training"], ids=lambda case: f"{case['caption'][:12]}-{case['fps_max']}")
def test_training_texts_are_the_published_ones_but_for_a_superfluous_zero(case):
    # There a native rate of 15 is "15.0" and one that was thinned to 15 is "15": one rate, two texts.
    assert trained(case) == case["out"].replace("15.0 FPS", "15 FPS")


@pytest.mark.parametrize("case", TEXTS["inference"], ids=lambda case: f"{case['prompt'][:14]}-{case['fps']}")
def test_sampling_writes_the_suffix_that_training_writes(case):
    motion = int(case["motion_score"])
    caption, own, _ = split_suffix(case["prompt"])
    ours = prompt_text(case["prompt"], "fps-motion", case["fps"], motion)
    assert ours == prompt_text(caption, "fps-motion", case["fps"] if own is None else own, motion)
    assert ours.endswith(f" {own or case['fps']:g} FPS, {motion} motion score.")
    # The same facts as in the published sampler's text, in the order and punctuation of training.
    facts = case["out"].replace(".", "").replace(",", "").split()
    assert ours.replace(".", "").replace(",", "").split() == facts


def test_a_prompt_that_names_its_rate_or_motion_keeps_them_in_every_style():
    assert prompt_text("A dog. 12 FPS, 9 motion score.", "plain", 24, 4) == "A dog. 12 FPS, 9 motion score."
    assert prompt_text("A dog. 9 motion score.", "fps-motion", 24, 4) == "A dog. 24 FPS, 9 motion score."
    assert prompt_text("A 60 FPS game", "fps", 24, 4) == "A 60 FPS game 24 FPS."


def test_pictures_have_neither():
    assert prompt_text("A photo of a tree.", "fps-motion", None, None) == "A photo of a tree."
