"""Whether what a run tells is in the vocabulary of reasons and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from videotrain_api.reasons import NOTICES, Message
from videotrain_api.vocabulary import ExitCode
from videotrain_operator.planner.decision import Plan

IMAGE_PROBLEM = re.compile(r"(ErrImage|ImagePull|InvalidImage|Create|Registry)\w*")
"""Kubernetes' own reasons, which are passed on."""


def unknown_in(plan: Plan) -> list[str]:
    """Events and conditions of a plan that stand in no notice, or whose message has another form."""
    told = [("event", event.type, event.reason, event.message) for event in plan.events]
    held = [(item.type, item.status, item.reason, item.message) for item in plan.status.conditions]
    return [
        f"{where} {type_} {reason}: {text}"
        for where, type_, reason, text in told + held
        if not _fits(text, _forms(where, (type_,), reason))
    ]


def unknown_events(events: Iterable[tuple[str, str]]) -> list[str]:
    """Events, as reason and message, that stand in no notice, or whose message has another form."""
    types = ("Normal", "Warning")
    return [f"{reason}: {text}" for reason, text in events if not _fits(text, _forms("event", types, reason))]


def _fits(text: str, forms: Iterator[str]) -> bool:
    """Events and conditions are cut at 1,000 characters, and stripped at their end."""
    parts = (re.split(r"\{\w+\}", form) for form in forms)
    patterns = (re.compile(".*".join(map(re.escape, part)), re.DOTALL) for part in parts)
    return any(pattern.fullmatch(text) or pattern.fullmatch(f"{text} ") for pattern in patterns)


def _forms(where: str, types: tuple[str, ...], reason: str) -> Iterator[str]:
    yield from (n.message for n in NOTICES if (n.where, n.reason) == (where, reason) and n.type in types)
    passed_on = where in ("event", "Scheduled") and ("Warning" in types or "False" in types)
    if passed_on and IMAGE_PROBLEM.fullmatch(reason):
        yield Message.PODS + Message.PODS_STUCK
    if where == "Failed" and reason in ExitCode.__members__:
        yield from (Message.WORKER_FAILED, Message.POD_ENDED)
