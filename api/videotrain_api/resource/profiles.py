"""What the annotation that asks for a trace of training steps may say."""

from __future__ import annotations

from typing import Final, NamedTuple

MOST_STEPS: Final = 20
"""Steps of one trace: of an 11B model each is some hundred thousand events."""
MOST_RANKS: Final = 16
"""Ranks of one request."""
STEPS: Final = 3
"""Steps if the annotation does not say."""


class ProfileWish(NamedTuple):
    """Trace so many steps on these ranks."""

    steps: int
    ranks: tuple[int, ...]


def parse_profile(text: str) -> ProfileWish:
    """Read `steps=3 ranks=0,8 id=anything`: words in any order, each at most once, none of them necessary.

    Without `ranks` it is rank 0. `id` means nothing by itself: it makes another request of the same words.

    Raises:
        ValueError: says what is wrong and what is allowed.
    """
    found: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if key not in ("steps", "ranks", "id") or not equals or not value or key in found:
            raise ValueError(f"{word!r} is not understood; allowed: steps=N, ranks=N,N,... and id=WORD, each once")
        found[key] = value
    steps = _number("steps", found.get("steps", str(STEPS)), 1, MOST_STEPS)
    ranks = tuple(sorted({_number("ranks", one, 0, 2**20) for one in found.get("ranks", "0").split(",")}))
    if len(ranks) > MOST_RANKS:
        raise ValueError(f"ranks: {len(ranks)} of them; allowed: at most {MOST_RANKS}")
    return ProfileWish(steps, ranks)


def _number(what: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise ValueError(f"{what}: {text!r}; allowed: {least} to {most}")
    return int(text)
