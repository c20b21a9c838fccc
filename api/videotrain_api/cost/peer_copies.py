"""Memory that copies of training state take on each node: pure arithmetic."""

from __future__ import annotations

from typing import Final

from videotrain_api.cost.autoencoder_flops import autoencoder_parameters
from videotrain_api.cost.flops import mmdit_shape, parameters
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Stage

STATE_BYTES: Final = 12
"""Of each trained parameter in a checkpoint, and so in a copy: weight and both moments in float32."""
AVERAGE_BYTES: Final = 4
"""The same of a moving average."""
SETS: Final = 2
"""The newest one that is complete on all nodes, and the one that is being made."""


def copies_bytes(trained: int, nodes: int, *, average: bool) -> int:
    """Bytes of /dev/shm that the copies of a stage take on each node.

    Args:
        trained: parameters that are trained.
        nodes: in the world. A single node keeps the copies of its own workers only, more nodes each those of another
            one, too.
        average: a moving average is kept.
    """
    share = -(-trained // nodes) * (STATE_BYTES + (AVERAGE_BYTES if average else 0))
    return share * SETS * min(nodes, 2)


def copied_parameters(
    stage: Stage, model: TransformerSpec | None, autoencoder: AutoencoderSpec, text: TextEncoderSpec
) -> int:
    """Trained parameters of a stage; 0 if it trains none. Of an adapter, which is small, none are counted."""
    if stage.autoencoder is not None:
        return autoencoder_parameters(autoencoder)
    if stage.train is None or stage.train.lora is not None or model is None:
        return 0
    return parameters(mmdit_shape(model, autoencoder, text))
