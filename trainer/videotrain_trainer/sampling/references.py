"""Pictures and videos that a drawing is given: read, cut to its size, encoded by themselves.

Shapes: C colour or latent channels, T frames, H rows, W columns, F given latent frames.
"""

from __future__ import annotations

from itertools import islice
from math import ceil

import numpy as np
import torch
from torch import Tensor

from videotrain_api.resource.references import reference_frames, refusal, takes_head, takes_tail
from videotrain_trainer.data.buckets import FPS_MAX, Window
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import Frame, Unreadable, cover_size, decode, probe
from videotrain_trainer.diffusion.conditioning import Given
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.networks.latents import encode_latents
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
    kind, causal = request.condition, models.sources.autoencoder.causal
    refused = refusal(kind, request.settings.frames, causal, models.transformer.config.cond_embed)
    if refused:
        raise ConfigError(f"condition {kind}: {refused}")
    if kind == "t2v":
        return Given()
    count = reference_frames(kind, causal)
    with models.on_device(models.autoencoder):
        head = _encoded(request, models, store, "head", count) if takes_head(kind) else None
        if head is not None and takes_tail(kind) and request.last_image is None:
            return Given(head, head)
        return Given(head, _encoded(request, models, store, "tail", count) if takes_tail(kind) else None)


def _encoded(request: Request, models: Models, store: ObjectStore, end: str, count: int) -> Tensor:
    image = request.last_image if end == "tail" and request.last_image is not None else request.image
    source = request.video if image is None else image
    assert source is not None, "check_reference has seen that there is one"
    settings = request.settings
    target = (settings.height, settings.width)
    data = store.get(source)
    pixels_CTHW = first_frame(data, source, target) if count == 1 else _clip(data, source, target, count, end)
    x_BCTHW = pixels_CTHW[None].to(models.device, models.dtype)
    name = f"{source}/{end}"
    return encode_latents(models.video_autoencoder, models.sources.autoencoder, x_BCTHW, request.seed, name)[0].float()


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
