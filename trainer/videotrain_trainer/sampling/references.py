"""Pictures and videos that a drawing is given: read, cut to its size, encoded by themselves.

Shapes: C colour or latent channels, T frames, H rows, W columns, F given latent frames.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from math import ceil

import numpy as np
import torch
from torch import Tensor

from videotrain_api.resource.references import reference_frames, refusal, takes_head, takes_tail
from videotrain_api.resource.stages import ConditionKind
from videotrain_trainer.data.buckets import FPS_MAX, Window
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import Frame, Unreadable, cover_size, decode, probe
from videotrain_trainer.diffusion.conditioning import Given
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.latents import PosteriorUse, encode_latents
from videotrain_trainer.sampling.loaded import Models
from videotrain_trainer.sampling.request import Request
from videotrain_trainer.storage import ObjectStore

CENTRE = (0.5, 0.5)


def given_of(request: Request, models: Models, store: ObjectStore) -> Given:
    """Latents of what a request is given, float32 on the device.

    Raises:
        DataError: a reference cannot be read or is too short.
        ConfigError: the models cannot draw such a video from a reference.
    """
    kind, time = request.condition, models.sources.autoencoder.time
    refused = refusal(kind, request.settings.frames, time, models.transformer.config.cond_embed)
    if refused:
        raise ConfigError(f"condition {kind}: {refused}")
    if kind == "t2v":
        return Given()
    count = reference_frames(kind, time)

    def read(source: str | None) -> Tensor | None:
        if source is None:
            return None
        data, target = store.get(source), (request.settings.height, request.settings.width)
        if count == 1:
            return first_frame(data, source, target)
        return _clip(data, source, target, count, "head" if takes_head(kind) else "tail")

    pixels_CFHW, last_CFHW = read(request.video if request.image is None else request.image), read(request.last_image)
    assert pixels_CFHW is not None, "check_request has seen that there is one"
    with models.on_device(models.autoencoder):
        posterior = models.sources.autoencoder.posterior
        return encode_given(kind, models.video_autoencoder, posterior, pixels_CFHW, last_CFHW, request.seed)


def encode_given(
    kind: ConditionKind,
    autoencoder: Autoencoder,
    posterior: PosteriorUse | None,
    pixels_CFHW: Tensor,
    last_CFHW: Tensor | None,
    seed: int,
) -> Given:
    """Latents of given pixels.

    What is sampled of a distribution depends on the seed, the pixels themselves and the end where they are given, so a
    copy of a picture in another folder, or the same pixels in memory, give the same latents.

    Args:
        kind: any but t2v.
        autoencoder: on its device.
        posterior: whether latents are sampled.
        pixels_CFHW: in [-1, 1].
        last_CFHW: for i2v_loop, if it ends with another picture than it begins with.
        seed: of the drawing.
    """
    like = next(autoencoder.parameters())

    def encoded(part_CFHW: Tensor, end: str) -> Tensor:
        name = f"{hashlib.sha256(to_uint8(part_CFHW).cpu().numpy().tobytes()).hexdigest()}/{end}"
        part_1CFHW = part_CFHW[None].to(like.device, like.dtype)
        return encode_latents(autoencoder, posterior, part_1CFHW, seed, [[name]])[0][0].float()

    head = encoded(pixels_CFHW, "head") if takes_head(kind) else None
    if not takes_tail(kind):
        return Given(head)
    if head is not None and last_CFHW is None:
        return Given(head, head)
    return Given(head, encoded(pixels_CFHW if last_CFHW is None else last_CFHW, "tail"))


def first_frame(data: bytes, uri: str, target: tuple[int, int]) -> Tensor:
    """The middle of a picture or of a video's first frame, (3, 1, H, W) in [-1, 1].

    Raises:
        DataError: it is neither.
    """
    return _crop(_read(data, uri, target, 1, 1), target)


def _clip(data: bytes, uri: str, target: tuple[int, int], count: int, end: str) -> Tensor:
    """The first or last `count` frames after thinning out to the frame rate of training, (3, T, H, W)."""
    try:
        stride = max(1, ceil(float(probe(data).fps) / FPS_MAX))
    except Unreadable as error:
        raise DataError(f"{uri}: not a readable video: {error}") from error
    frames = _read(data, uri, target, stride, None if end == "tail" else count)
    if len(frames) < count:
        raise DataError(
            f"{uri}: {len(frames)} frames at up to {FPS_MAX} per second, but {count} are to be given; take a longer one"
        )
    return _crop(frames[:count] if end == "head" else frames[-count:], target)


def _read(data: bytes, uri: str, target: tuple[int, int], stride: int, most: int | None) -> Frame:
    try:
        info = probe(data)
        every = islice(decode(data, cover_size(info.height, info.width, target)), 0, None, stride)
        frames = [frame for _, frame in islice(every, most)]
    except Unreadable as error:
        raise DataError(f"{uri}: not a readable picture or video: {error}") from error
    if not frames:
        raise DataError(f"{uri}: not a readable picture or video: it has no frame")
    return np.stack(frames)


def _crop(frames: Frame, target: tuple[int, int]) -> Tensor:
    pixels: Tensor = crop_window(frames, Window(0, len(frames), 1), target, CENTRE)
    return pixels


def to_uint8(pixels_CTHW: Tensor) -> Tensor:
    """Pixels in [-1, 1] to frames, (T, H, W, C) uint8."""
    return ((pixels_CTHW.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
