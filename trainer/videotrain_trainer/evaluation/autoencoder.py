"""Reconstruction of videos by an autoencoder: PSNR, SSIM, and LPIPS where its weights are mounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.evaluation.metrics import SMALLEST_SIDE, Frames, compared
from videotrain_trainer.evaluation.videos import Item
from videotrain_trainer.models.coding import decode, encode
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.losses.perceptual import PerceptualDistance, frames_of

LPIPS_FRAMES = 4
"""Frames that VGG16 sees at once."""
Row = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """An autoencoder and what it is measured by."""

    autoencoder: Autoencoder
    perceptual: PerceptualDistance | None
    """None if its weights are not mounted."""

    def rows(self, items: Sequence[Item], tick: Callable[[int, int], None]) -> Iterator[tuple[str, Row]]:
        """Name and measures of every video, in order.

        Args:
            items: videos.
            tick: is told how many of how many are done.

        Raises:
            ConfigError: a size cannot be encoded.
        """
        for number, item in enumerate(items, start=1):
            video_CTHW = item.pixels()
            yield item.name, self._row(video_CTHW, self._reconstruction(item, video_CTHW))
            tick(number, len(items))

    def _reconstruction(self, item: Item, video_CTHW: Tensor) -> Tensor:
        try:
            latent_BCTHW = item.latent()[None] if item.latent else encode(self.autoencoder, video_CTHW[None])
            out_CTHW = decode(self.autoencoder, latent_BCTHW)[0].cpu()
        except ValueError as error:
            raise ConfigError(f"{item.name}: {error}; see --frames and --size") from error
        if out_CTHW.shape != video_CTHW.shape:
            raise ConfigError(
                f"{item.name}: {list(video_CTHW.shape)} pixels became {list(out_CTHW.shape)}; choose other --frames, "
                "or the autoencoder and the clips that the latents were made with"
            )
        return out_CTHW

    def _row(self, video_CTHW: Tensor, out_CTHW: Tensor) -> Row:
        row = compared(to_frames(video_CTHW), to_frames(out_CTHW))
        if self.perceptual is not None:
            row["lpips"] = lpips(self.perceptual, video_CTHW, out_CTHW)
        return row


@torch.no_grad()
def lpips(perceptual: PerceptualDistance, first_CTHW: Tensor, second_CTHW: Tensor) -> float:
    """Mean LPIPS over the frames of two clips in [-1, 1]."""
    device = next(perceptual.parameters()).device
    pairs = zip(*(torch.split(frames_of(clip[None]), LPIPS_FRAMES) for clip in (first_CTHW, second_CTHW)), strict=True)
    found = [perceptual(first.to(device), second.clamp(-1, 1).to(device)) for first, second in pairs]
    return float(torch.cat(found).mean())


def to_frames(video_CTHW: Tensor) -> Frames:
    """(3, T, H, W) in [-1, 1] to (T, H, W, 3) uint8, as a file holds it."""
    scaled = ((video_CTHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    found: Frames = scaled.permute(1, 2, 3, 0).contiguous().numpy()
    return found


def check_size(size: tuple[int, int]) -> None:
    """Raises ConfigError if SSIM's window does not fit."""
    if min(size) < SMALLEST_SIDE:
        raise ConfigError(f"--size: {size[1]}x{size[0]}; SSIM needs sides of {SMALLEST_SIDE} pixels or more")
