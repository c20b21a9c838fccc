"""Reading what an agent answers: its image is the user's, so it may say anything.

What is kept goes into status, events and logs, so it is bounded here, once: sizes of texts, lists and numbers, and no
text with characters that would forge a line of a log or a terminal's colours.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from videotrain_api.records import AgentProgress, RosterReceipt
from videotrain_api.resource.stored_size import cut
from videotrain_api.schema import ApiModel, ManifestError, problems_of

LARGEST_ANSWER: Final = 256 * 1024
"""Bytes of an answer; more are not read."""
DEEPEST: Final = 16
"""Levels of nesting; an honest answer has five."""
MOST_ITEMS: Final = 32
"""Items of a list, the newest, and keys of a mapping, the first."""
LONGEST_TEXT: Final = 1000
"""Bytes of a text as the API server stores it; others for some fields:"""
LONGEST: Final = {"stacks": 4000, "skippedCheckpoints": 300, "gpuKinds": 100}
"""Stacks: the pods' logs hold them whole."""
LONGEST_KEY: Final = 64
Said = TypeVar("Said", bound=ApiModel)
MOST: Final = {"skippedCheckpoints": 8, "gpuKinds": 16, "saved": 8}
"""Items of some lists."""
LARGEST_NUMBER: Final = 2**53
"""Beyond it a JSON number is another one for other readers."""
LONGEST_TOLD: Final = 300
"""Characters of a foreign text in a log line."""


class UnreadableAnswerError(Exception):
    """An answer is not what an agent answers; the message is bounded and printable."""


def read_progress(body: bytes) -> AgentProgress:
    """An agent's progress from its JSON, with every text and list cut to what may be stored.

    Raises:
        UnreadableAnswerError: it is too large or too deep, no JSON, or no progress.
    """
    try:
        return _model(AgentProgress, _bounded(_parsed(body), LONGEST_TEXT, 0))
    except (ValueError, ManifestError) as error:
        raise UnreadableAnswerError(shown(str(error))) from None


def read_receipt(body: bytes) -> RosterReceipt:
    """An agent's receipt of a roster from its JSON; nothing of it is kept.

    Raises:
        UnreadableAnswerError: it is too large or too deep, no JSON, or no receipt.
    """
    try:
        return _model(RosterReceipt, _parsed(body))
    except (ValueError, ManifestError) as error:
        raise UnreadableAnswerError(shown(str(error))) from None


def shown(text: str) -> str:
    """A foreign text for a log line: quoted, escaped and cut."""
    return repr(text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}...")


def _parsed(body: bytes) -> Any:
    if len(body) > LARGEST_ANSWER:
        raise ValueError(f"the answer is longer than {LARGEST_ANSWER} bytes")
    return from_json(body, allow_inf_nan=False)  # has a limit of its own on nesting and needs no stack of Python's


def _model(model: type[Said], data: Any) -> Said:
    """What an agent of a later version tells beside is passed over: it trains, and must not count as silent."""
    try:
        return model.model_validate(data, extra="ignore")
    except ValidationError as error:
        raise ManifestError(problems_of(error, model)) from None


def _bounded(data: Any, longest: int, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"the answer is nested more than {DEEPEST} levels deep")
    match data:
        case str():
            return cut(_printable(data[:longest]), longest)
        case list():
            return [_bounded(item, longest, depth + 1) for item in data[-MOST_ITEMS:]]
        case dict():
            return dict(_field(name, item, depth) for name, item in list(data.items())[:MOST_ITEMS])
        case int() if abs(data) > LARGEST_NUMBER:
            raise ValueError("the answer has a number beyond 2^53")
    return data


def _field(name: str, value: Any, depth: int) -> tuple[str, Any]:
    if isinstance(value, list):
        value = value[-MOST.get(name, MOST_ITEMS) :]
    kept = _bounded(value, LONGEST.get(name, LONGEST_TEXT), depth + 1)
    return cut(_printable(name[:LONGEST_KEY]), LONGEST_KEY), kept


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
