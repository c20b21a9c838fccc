"""First weights where no engine shares them out."""

from torch import nn

from videotrain_trainer.networks.weights.fragments import whole
from videotrain_trainer.networks.weights.loading import materialise


def begin(objective) -> None:
    """Give the model of an objective its first weights, on the CPU."""
    found = objective.first_weights()
    if found is not None:
        module: nn.Module = objective.module
        for name, parameter in list(module.named_parameters()):
            if parameter.is_meta:
                materialise(module, name, whole(found, name, tuple(parameter.shape)))
