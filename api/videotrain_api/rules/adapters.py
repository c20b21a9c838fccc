"""What training an adapter asks for."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.capabilities import LINEAR_LAYERS, linear_layers
from videotrain_api.config.resolve import stage_paths
from videotrain_api.resource.stages import TrainTask
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem


def check_adapter(path: str, index: int, task: TrainTask, facts: Facts) -> Iterator[Problem]:
    """Weights to adapt, and layers that the model has."""
    if task.lora is None:
        return
    if stage_paths(facts.run, index).initial_weights is None:
        allowed = "an adapter needs a trained model: set spec.model.weights, initFrom, or a train stage before this one"
        yield Problem(f"{path}.lora", task.lora.rank, allowed)
    if facts.model is not None:
        names = list(linear_layers(facts.model))
        for number, target in enumerate(task.lora.targets):
            if not any(f".{name}".endswith(f".{target}") for name in names):
                kinds = dict.fromkeys(layer for layers in LINEAR_LAYERS.values() for layer in layers)
                allowed = f"no linear layer of spec.model ends so; allowed: ends of {', '.join(kinds)}"
                yield Problem(f"{path}.lora.targets[{number}]", target, allowed)
