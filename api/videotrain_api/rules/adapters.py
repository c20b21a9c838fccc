"""What training an adapter asks for."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.config.resolve import stage_paths
from videotrain_api.resource.stages import TrainTask
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem


def check_adapter(path: str, index: int, task: TrainTask, facts: Facts) -> Iterator[Problem]:
    """Weights to adapt, and a ZeRO stage that leaves frozen weights whole."""
    if task.lora is None:
        return
    if stage_paths(facts.run, index).initial_weights is None:
        allowed = "an adapter needs a trained model: set spec.model.weights, initFrom, or a train stage before this one"
        yield Problem(f"{path}.lora", task.lora.rank, allowed)
    if task.parallel.zero_stage == 3:
        allowed = "stage 3 would also cut the frozen weights up, which gains nothing for an adapter; allowed: 0, 1, 2"
        yield Problem(f"{path}.parallel.zeroStage", 3, allowed)
