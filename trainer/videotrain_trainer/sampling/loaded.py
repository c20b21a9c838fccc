"""The models of a drawing, loaded once, and which of them is on the device.

Drawing has phases: text, references, latents, pixels. With offloading only the model of the current phase is on the
device; the others wait in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.build import build_transformer, load_autoencoder
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import load_weights, open_weights
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.encoders import TextEncoder, load_text_encoder

FLUX_PICTURES = PictureVAEConfig()
"""Sizes of FLUX.1's picture autoencoder."""
FLUX_PICTURE_SPEC = AUTOENCODERS["hunyuan-vae"].model_copy(update={"tiling": None})
"""Says of it what a transformer and a size need: 16 channels, 8 x 8 pixels. The HunyuanVideo VAE has the same."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Resolved specifications and where the weights are: paths or URIs of files or folders."""

    model: TransformerSpec
    model_weights: str
    autoencoder: AutoencoderSpec
    autoencoder_weights: str
    text_encoder: TextEncoderSpec
    pictures: bool = False
    """The autoencoder is FLUX.1's for pictures; `autoencoder` is then FLUX_PICTURE_SPEC."""

    def places(self) -> str:
        """Where the weights are, for the settings of a video."""
        text = self.text_encoder.weights or self.text_encoder.kind
        return " ".join([self.model_weights, self.autoencoder_weights, text])


@dataclass(frozen=True, kw_only=True)
class Models:
    """In evaluation mode, without gradients. bfloat16 on CUDA, float32 elsewhere."""

    sources: Sources
    transformer: MMDiT
    autoencoder: Autoencoder
    text: TextEncoder
    device: torch.device
    dtype: torch.dtype
    offload: bool
    """Keep on the device only what is in use."""

    @property
    def conditioned(self) -> bool:
        """Whether the model was trained with given frames: its condition input starts at zero and only they move it."""
        return self.transformer.cond_in is not None and bool(self.transformer.cond_in.weight.any())

    @property
    def video_autoencoder(self) -> Autoencoder:
        """The autoencoder, for references.

        Raises:
            ConfigError: it codes pictures only.
        """
        if self.autoencoder.pictures_only:
            raise ConfigError("references: an image model draws from text alone; give them to the video model")
        return self.autoencoder

    @contextmanager
    def on_device(self, model: Movable) -> Iterator[None]:
        """Have a model on the device for the block."""
        if self.offload:
            model.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                model.to(torch.device("cpu"))
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


class Movable(Protocol):
    """A model, whatever its class."""

    def to(self, device: torch.device, /) -> Any:
        """Move the weights to a device, in place."""


def load_models(
    sources: Sources,
    store: ObjectStore,
    cache: Path,
    device: torch.device,
    offload: bool = False,
    text: TextEncoder | None = None,
) -> Models:
    """Load all models.

    Args:
        sources: what and from where.
        store: serves URIs.
        cache: local folder for weights of text encoders that are fetched.
        device: where the models run.
        offload: keep on the device only what is in use.
        text: an encoder that is loaded already, if the caller has one for these features.

    Raises:
        ConfigError: weights do not fit the specifications.
    """
    home = torch.device("cpu") if offload else device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        transformer = build_transformer(sources.model, sources.autoencoder, sources.text_encoder).to(dtype)
    load_weights(transformer, open_weights(sources.model_weights, store=store))
    return Models(
        sources=sources,
        transformer=transformer.to(home).eval().requires_grad_(False),
        autoencoder=_autoencoder(sources, store).to(home, dtype).eval().requires_grad_(False),
        text=load_text_encoder(sources.text_encoder, store, cache, home) if text is None else text,
        device=device,
        dtype=dtype,
        offload=offload,
    )


def _autoencoder(sources: Sources, store: ObjectStore) -> Autoencoder:
    weights = open_weights(sources.autoencoder_weights, store=store)
    if not sources.pictures:
        return load_autoencoder(sources.autoencoder, weights)
    with torch.device("meta"):
        pictures = PictureVAE(FLUX_PICTURES)
    load_weights(pictures, weights)
    return pictures
