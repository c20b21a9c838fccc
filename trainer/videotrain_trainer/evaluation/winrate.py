"""Win rates from people's answers: shares with confidence intervals, per question."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videotrain_trainer.errors import DataError

QUESTIONS: Mapping[str, str] = {
    "visual": "Which video looks better?",
    "prompt": "Which video follows the prompt more closely?",
    "motion": "Which video moves better?",
}
ANSWERS = ("left", "right", "tie")
CONFIDENCE_95 = 1.959963984540054


@dataclass(frozen=True)
class WinRate:
    """How often the first model was preferred in one question."""

    question: str
    wins: int
    losses: int
    ties: int

    @property
    def answers(self) -> int:
        """How many comparisons were answered, ties included."""
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """Share of the first model; a tie counts half for each."""
        return (self.wins + self.ties / 2) / self.answers

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which stays within 0 and 1 and is honest for few answers."""
        return wilson(self.rate, self.answers)

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out one half."""
        low, high = self.interval
        return low > 0.5 or high < 0.5


def wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % interval of a share that was seen in `count` independent answers."""
    z2 = CONFIDENCE_95**2
    middle = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = CONFIDENCE_95 / (1 + z2 / count) * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    return middle - half, middle + half


def read_key(path: Path) -> dict[str, Any]:
    """The key of a comparison.

    Raises:
        DataError: it is none.
    """
    key = _json(path)
    if not isinstance(key, dict) or not {"comparison", "models", "left"} <= key.keys():
        raise DataError(f"{path}: not the key of a comparison; it is written beside the page as key.json")
    return key


def read_answers(paths: Sequence[Path], key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answers files of all raters; of a rater who sent two, the later one counts.

    Raises:
        DataError: a file is damaged or belongs to another comparison.
    """
    by_rater: dict[str, dict[str, Any]] = {}
    for path in paths:
        sheet = _json(path)
        if not isinstance(sheet, dict) or not {"comparison", "rater", "answers", "saved"} <= sheet.keys():
            raise DataError(f"{path}: no answers of a comparison; save them with the button of the page")
        if sheet["comparison"] != key["comparison"]:
            raise DataError(f"{path}: answers of comparison {sheet['comparison']}, the key is of {key['comparison']}")
        _check(path, sheet["answers"], key)
        before = by_rater.get(sheet["rater"])
        if before is None or sheet["saved"] >= before["saved"]:
            by_rater[sheet["rater"]] = sheet
    return list(by_rater.values())


def win_rates(sheets: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> list[WinRate]:
    """Of the first model of the key, per question that somebody answered."""
    rates = []
    for question in QUESTIONS:
        seen = Counter(
            _winner(answer, key["left"][pair], key["models"])
            for sheet in sheets
            for pair, given in sheet["answers"].items()
            if (answer := given.get(question)) is not None
        )
        if seen:
            rates.append(WinRate(question, seen[key["models"][0]], seen[key["models"][1]], seen["tie"]))
    return rates


def _winner(answer: str, left: str, models: Sequence[str]) -> str:
    if answer == "tie":
        return "tie"
    return left if answer == "left" else models[1 - models.index(left)]


def _check(path: Path, answers: Mapping[str, Mapping[str, str]], key: Mapping[str, Any]) -> None:
    for pair, given in answers.items():
        if pair not in key["left"]:
            raise DataError(f"{path}: pair {pair!r} is not of this comparison")
        for question, answer in given.items():
            if question not in QUESTIONS or answer not in ANSWERS:
                raise DataError(f"{path}: pair {pair}: {question!r}: {answer!r} is no answer; allowed: {ANSWERS}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
