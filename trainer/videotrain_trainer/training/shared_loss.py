"""The loss of a micro-batch, where one rank has it and where the ranks of a group share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from videotrain_trainer.diffusion.flow_matching import FlowInputs, flow_loss, token_weights, weighted_loss
from videotrain_trainer.networks.attention import attention
from videotrain_trainer.parallel.context import ContextGroup


def micro_batch_loss(
    model: Callable[..., Any], inputs: FlowInputs, group: ContextGroup | None, skip_given: bool = False
) -> Tensor:
    """The loss of a micro-batch; of the ranks of a group each has another one, with the micro-batch's as their mean."""
    if group is None:
        return flow_loss(model(**inputs.arguments()), inputs, skip_given)
    mine = inputs.part(group.part)
    attend = group.attention(attention, inputs.txt_BLD.shape[1], inputs.x_t_BNI.shape[1])
    prediction_BNI = model(**mine.arguments(), attend=attend)
    weights_BN = group.part(token_weights(inputs, skip_given))
    return group.degree * weighted_loss(prediction_BNI, mine.target_BNI, weights_BN)
