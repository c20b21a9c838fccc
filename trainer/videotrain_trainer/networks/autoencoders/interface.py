"""What every video autoencoder is to the rest of the package: the protocol that a new one implements.

Shape letters: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from videotrain_trainer.networks.autoencoders.tiling import TileCoder, Tiling

Causality = Literal["none", "causal", "chunk"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ABC):
    """Sizes that every autoencoder has; a network adds its own. Raises ValueError if they do not fit together."""

    latent_channels: int
    scaling_factor: float = 1.0
    """The scale of the latents, as the network defines it."""
    tiling: Tiling | None = None

    @property
    @abstractmethod
    def spatial_compression(self) -> int:
        """Pixels per latent row and column."""

    @property
    @abstractmethod
    def temporal_compression(self) -> int:
        """Frames per latent frame."""

    @property
    @abstractmethod
    def causality(self) -> Causality:
        """Which frames a latent frame has seen; see `spec.autoencoder.causality`."""


@dataclass(frozen=True)
class Posterior:
    """Distribution of the latents of a clip, before they are normalised."""

    mean_BCTHW: Tensor
    logvar_BCTHW: Tensor | None
    """Logarithm of the variance; None for an autoencoder that gives one latent for a clip."""

    @property
    def is_sampled(self) -> bool:
        """Whether there is anything to sample."""
        return self.logvar_BCTHW is not None

    def sample(self, noise_BCTHW: Tensor) -> Tensor:
        """The latents at that standard normal noise; the mean if nothing is sampled."""
        if self.logvar_BCTHW is None:
            return self.mean_BCTHW
        return self.mean_BCTHW + (0.5 * self.logvar_BCTHW).exp() * noise_BCTHW.to(self.mean_BCTHW)


class Autoencoder(nn.Module, ABC):
    """A video autoencoder. Pixels lie in [-1, 1]; latents that leave it are normalised, as transformers take them.

    A network implements what is abstract, for one tile at a time; tiling, streams and the order of the steps are here.
    """

    config: AutoencoderConfig
    tiles: TileCoder
    pictures_only: ClassVar[bool] = False
    """Made for pictures: it codes each frame of a clip by itself, and no model of videos was trained on its latents."""

    @abstractmethod
    def check_size(self, frames: int, rows: int, columns: int) -> None:
        """Raises ValueError, with what is allowed, if a clip of that size cannot be encoded."""

    @abstractmethod
    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """As what tiles of an encoded clip are cross-faded: mean and logarithm of the variance along C, or latents."""

    @abstractmethod
    def split(self, moments_BCTHW: Tensor) -> Posterior:
        """The distribution that moments describe."""

    @abstractmethod
    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        """Pixels of latents that are not normalised."""

    @abstractmethod
    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """Latents of the posterior as the transformer takes them, by the scale or the statistics of each channel."""

    @abstractmethod
    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """The inverse of `normalise`."""

    def weights_owner(self) -> nn.Module:
        """The module whose names the weights of a file have."""
        return self

    def recomputable_blocks(self) -> list[nn.Module]:
        """Blocks that may keep only their inputs and run again in the backward pass, see `outer_blocks`."""
        return []

    def first_value(self, name: str) -> float | None:  # noqa: ARG002 - of use to networks that override it
        """The constant that a parameter starts with where it does not start as its layer usually does."""
        return None

    def posterior(self, x_BCTHW: Tensor) -> Posterior:
        """Distribution of a clip's latents, before they are normalised.

        Args:
            x_BCTHW: (B, 3, T, H, W).

        Raises:
            ValueError: a size cannot be encoded.
        """
        self.check_size(*x_BCTHW.shape[2:])
        return self.split(self.tiles.encode(self.moments, x_BCTHW))

    def encode(self, x_BCTHW: Tensor, noise_BCTHW: Tensor | None = None) -> Tensor:
        """Pixels to latents.

        Args:
            x_BCTHW: (B, 3, T, H, W).
            noise_BCTHW: standard normal noise of the latents' shape to sample with; the mode of the posterior if None.

        Returns:
            (B, C, T', H', W').

        Raises:
            ValueError: a size cannot be encoded.
        """
        posterior = self.posterior(x_BCTHW)
        return self.normalise(posterior.mean_BCTHW if noise_BCTHW is None else posterior.sample(noise_BCTHW))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents (the mode) of a long clip that arrives in pieces, piece by piece: those of `encode`, bit for bit.

        Args:
            chunks: pixels (B, 3, n, H, W) of any number of frames each. Needs a temporal tile.

        Raises:
            ValueError: there is no temporal tile, or the frames together do not fit.
        """
        for moments_BCTHW in self.tiles.stream(self.moments, chunks):
            yield self.normalise(self.split(moments_BCTHW).mean_BCTHW)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Latents to pixels, (B, 3, T, H, W)."""
        return self.tiles.decode(self.pixels, self.denormalise(z_BCTHW))

    def forward(self, x_BCTHW: Tensor, lone_head: bool = False) -> Tensor:
        """The reconstruction from the posterior's mode, for training: coded whole, whatever the tiling.

        Args:
            x_BCTHW: pixels.
            lone_head: the first latent frame is that of the first frame by itself, as in a drawing that begins with a
                given picture. The two differ where an encoder is not causal.
        """
        mode_BCTHW = self._mode(x_BCTHW)
        if lone_head:
            mode_BCTHW = torch.cat((self._mode(x_BCTHW[:, :, :1]), mode_BCTHW[:, :, 1:]), dim=2)
        return self.pixels(mode_BCTHW)

    def _mode(self, x_BCTHW: Tensor) -> Tensor:
        return self.split(self.moments(x_BCTHW)).mean_BCTHW


def outer_blocks(model: nn.Module, kinds: tuple[type[nn.Module], ...], last: nn.Module) -> list[nn.Module]:
    """Blocks of some kinds that lie in no other such block, without the last one in `last`, if that has any.

    The last block of a decoder must run once only, since an adaptive adversarial weight needs the gradient of the layer
    behind it before the backward pass.

    Args:
        model: whose blocks are meant.
        kinds: classes of blocks.
        last: the part of the decoder that runs last.
    """
    blocks = [part for part in model.modules() if isinstance(part, kinds)]
    inner = {id(part) for block in blocks for part in block.modules() if part is not block}
    kept = [block for block in blocks if block in set(last.modules())][-1:]
    return [block for block in blocks if id(block) not in inner and block not in kept]
