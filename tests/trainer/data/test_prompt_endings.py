"""The ending of a prompt is found as a slow, plain specification says, with work that does not grow with the prompt."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from videotrain_trainer.data import prompts
from videotrain_trainer.data.prompts import caption_text, prompt_text, split_suffix

NUMBER = re.compile(r"\d{1,16}(\.\d{1,16})?")
PIECES = [
    "24",
    "7.5",
    "0",
    "1.",
    " FPS",
    "FPS",
    " motion score",
    " score",
    ".",
    ",",
    " ",
    "\t",
    "\n",
    "  ",
    "A dog",
    "x",
]


def specified(prompt):
    """Try every place where a word begins, from the left, and every reading of what follows."""
    text = prompt.strip()
    for start in range(len(text)):
        if start and not text[start - 1].isspace():
            continue
        facts = read(text[start:])
        if facts is not None:
            return text[:start].rstrip(), *facts
    return text, None, None


def read(ending):
    """Rate and motion score, if the ending is nothing but these."""
    ending = ending.removesuffix(".")
    if ending.endswith(" FPS") and NUMBER.fullmatch(ending.removesuffix(" FPS")):
        return float(ending.removesuffix(" FPS")), None
    if not ending.endswith(" motion score"):
        return None
    before = ending.removesuffix(" motion score")
    for middle in ("", ".", ",", " ", ". ", ", "):
        for cut in range(len(before)):
            head, number = before[:cut], before[cut:]
            if NUMBER.fullmatch(number) and head == middle:
                return None, float(number)
            rate = head.removesuffix(f" FPS{middle}")
            if NUMBER.fullmatch(number) and head == f"{rate} FPS{middle}" and NUMBER.fullmatch(rate):
                return float(rate), float(number)
    return None


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
@example("24 FPS")
@example("A. 24 FPS4 motion score.")
@example("A dog , 9 motion score")
@example("A\t\t 12.5 FPS,  9 motion score.")
def test_an_ending_is_found_as_specified(prompt):
    assert split_suffix(prompt) == specified(prompt)


@settings(max_examples=300)
@given(st.text(alphabet="a .,0123456789FPSmotinsc\t", max_size=40))
def test_other_texts_too(prompt):
    assert split_suffix(prompt) == specified(prompt)


@pytest.mark.parametrize("filling", [" ", "9", "9 FPS ", " 9 motion score, ", "\t", "word "])
def test_what_the_pattern_is_shown_does_not_grow_with_the_prompt(filling, monkeypatch):
    shown, pattern = [], prompts._ENDING

    class Recorder:
        def search(self, text, begin):
            shown.append(len(text) - begin)
            return pattern.search(text, begin)

    monkeypatch.setattr(prompts, "_ENDING", Recorder())
    for count in (200, 20_000):
        split_suffix("a" + filling * count + "b")
    assert len(set(shown)) == 1
    assert shown[0] <= prompts.LONGEST_ENDING


def test_a_caption_of_a_million_blanks_is_split_at_all():
    # A search that starts anew at each blank would read 5 * 10**11 characters.
    text = "a" + " " * 1_000_000 + "b"
    assert split_suffix(text) == (text, None, None)


@pytest.mark.parametrize(
    ("caption", "style", "text"),
    [
        ("A slow-motion shot at 240 FPS", "fps-motion", "A slow-motion shot at 240 FPS 12 FPS, 3 motion score."),
        ("Ends with 24 FPS.", "fps", "Ends with 24 FPS. 12 FPS."),
        ("A dog. 9 motion score.", "plain", "A dog. 9 motion score."),
    ],
)
def test_the_clip_tells_its_rate_whatever_its_caption_ends_with(caption, style, text):
    assert caption_text(caption, style, 12.0, 3.0) == text


def test_a_prompt_and_a_caption_without_an_ending_read_alike():
    for style in ("plain", "fps", "motion", "fps-motion"):
        assert prompt_text("A dog.", style, 24, 4) == caption_text(" A dog. ", style, 24, 4)
