"""Experiment trackers: each once, and what MLflow needs."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

_SCHEMES = ("http://", "https://")


def check_tracking(facts: Facts) -> Iterator[Problem]:
    """Names that stand twice, a server that is missing or that nobody asks."""
    tracking, path = facts.run.spec.tracking, "spec.tracking"
    for number, name in enumerate(tracking.to):
        if name in tracking.to[:number]:
            yield Problem(f"{path}.to[{number}]", name, "is there already: name each tracker once")
    if "mlflow" in tracking.to and not (tracking.uri or "").startswith(_SCHEMES):
        yield Problem(f"{path}.uri", tracking.uri, "mlflow needs its server, such as http://mlflow:5000")
    if tracking.uri is not None and "mlflow" not in tracking.to:
        yield Problem(f"{path}.uri", tracking.uri, "only mlflow has a server: add it to `to`, or leave uri out")
    if tracking.wandb_mode == "online" and "wandb" not in tracking.to:
        yield Problem(f"{path}.wandbMode", "online", "only for wandb: add it to `to`, or leave wandbMode out")
