"""`load_text_encoder`: the text encoder that a transformer was trained with."""

from __future__ import annotations

from pathlib import Path

import torch

from videotrain_api.config.presets import COMPANIONS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.weights.files import default_store
from videotrain_trainer.storage import ObjectStore, user_cache
from videotrain_trainer.text import encoders
from videotrain_trainer.text.encoders import TextEncoder
from videotrain_trainer.text.files import is_remote


def load_text_encoder(
    model: str | TextEncoderSpec,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    cache: Path | None = None,
    store: ObjectStore | None = None,
) -> TextEncoder:
    """A text encoder, with the newest features kept in host memory.

    Args:
        model: a transformer's preset, whose text encoder is meant, or a specification.
        weights: folder with T5 and CLIP in any usual layout; a path, `file://` or `s3://`. The specification's if None;
            the small encoder of the tiny presets has none.
        device: where it goes; bfloat16 is used on CUDA, float32 elsewhere.
        cache: where files from the object store are kept; the user's cache folder if None.
        store: serves s3://; by default one with the credentials of the environment.

    Raises:
        ConfigError: the preset is unknown, or weights are missing, incomplete or of other sizes.
    """
    if isinstance(model, str):
        if model not in COMPANIONS:
            raise ConfigError(f"preset {model!r} is no transformer; allowed: {', '.join(COMPANIONS)}")
        model = COMPANIONS[model][1]
    if weights is not None and model.kind == "bytes":
        raise ConfigError(f"{weights}: a text encoder of kind 'bytes' has no weights; leave them out")
    spec = model if weights is None else model.model_copy(update={"weights": str(weights)})
    remote = spec.weights is not None and is_remote(spec.weights)
    if store is None:
        store = default_store(str(spec.weights) if remote else "s3://unused")  # which no path reaches
    return encoders.load_text_encoder(spec, store, cache or user_cache(), torch.device(device))
