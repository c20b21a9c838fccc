"""Weights in published layouts: opening, strict loading, conversion, writing.

`files` reads, `fragments` reads parts, `writer` writes, `layouts` has the layouts, `sizes` tells a model from its file,
`strict` lists what does not fit, `loading` fills models, `convert` goes between layouts.
"""

from videotrain_api.resource.autoencoder_kinds import KINDS
from videotrain_api.storage import layout
from videotrain_trainer.networks.weights.convert import Converted, convert
from videotrain_trainer.networks.weights.files import Weights, open_weights, read_metadata
from videotrain_trainer.networks.weights.fragments import Fragments
from videotrain_trainer.networks.weights.layouts import LAYOUTS, ModelConfig
from videotrain_trainer.networks.weights.loading import (
    Source,
    check_weights,
    load_frozen,
    load_state,
    load_weights,
    start_from,
    starting_fragments,
)
from videotrain_trainer.networks.weights.writer import (
    Destination,
    Planned,
    planned_order,
    weights_bytes,
    write_weights,
)

__all__ = [
    "LAYOUTS",
    "Converted",
    "Destination",
    "Fragments",
    "ModelConfig",
    "Planned",
    "Source",
    "Weights",
    "autoencoder_uri",
    "check_weights",
    "convert",
    "load_frozen",
    "load_state",
    "load_weights",
    "open_weights",
    "planned_order",
    "read_metadata",
    "start_from",
    "starting_fragments",
    "weights_bytes",
    "weights_uri",
    "write_weights",
]


def weights_uri(source: str) -> str:
    """The safetensors object that a configured source means: a file as it is, or the result of a stage's prefix."""
    return source if source.endswith(".safetensors") else layout.final_weights(source)


def autoencoder_uri(kind: str | None, source: str) -> str:
    """What a configured source of an autoencoder means: `weights_uri`, or the folder that its kind needs."""
    return source if KINDS[kind or ""].in_folder else weights_uri(source)
