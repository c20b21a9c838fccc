"""Drawing one video: text and reference to features, latent, pixels, and an mp4 file that tells how it was made."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from videotrain_api.stage_config import StageConfig
from videotrain_api.stages import ConditionKind
from videotrain_trainer.conditioning import Given
from videotrain_trainer.data.buckets import Window
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import Frame, Unreadable, cover_size, decode, probe, write_mp4
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.model.dc_ae import DCAE
from videotrain_trainer.model.mmdit import MMDiT
from videotrain_trainer.model.registry import build_text_encoder, build_transformer, load_autoencoder
from videotrain_trainer.model.weights import load_weights, weights_uri
from videotrain_trainer.sampler import Guidance, Sampler, TextPair
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.tasks.sample_plan import Drawing, task_of

_NOISE_STREAM = 0x6E6F6973
"""Second word of the noise generator's key."""


class Studio:
    """The three models of a sample stage, loaded, on one device.

    Args:
        config: of the stage.
        store: holds the weights.
        device: bfloat16 is used on CUDA, float32 elsewhere.

    Raises:
        ConfigError: weights are not configured or do not fit the models.
    """

    def __init__(self, config: StageConfig, store: ObjectStore, device: torch.device) -> None:
        self._config, self._store, self._device = config, store, device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = build_transformer(config.model, config.autoencoder, config.text_encoder)
        load_weights(model, *_read(store, config.paths.model_weights, "paths.modelWeights"))
        found = _read(store, config.paths.autoencoder_weights, "paths.autoencoderWeights")
        autoencoder = load_autoencoder(config.autoencoder, *found)
        self.model: MMDiT = model.to(device, dtype).eval().requires_grad_(False)
        self._autoencoder: DCAE = autoencoder.to(device, dtype).eval().requires_grad_(False)
        self._dtype = dtype
        self._text_encoder = build_text_encoder(config.text_encoder)
        task = task_of(config)
        guidance = Guidance(text=task.text_guidance, image=task.image_guidance)
        self._sampler = Sampler(self.model, task.sampling_steps, guidance)

    @property
    def conditioned(self) -> bool:
        """Whether the model was trained with given frames: its condition input starts at zero and only they move it."""
        return self.model.cond_in is not None and bool(self.model.cond_in.weight.any())

    @torch.no_grad()
    def draw(self, drawing: Drawing) -> Tensor:
        """The frames of a video, (T, H, W, 3) uint8 on the CPU."""
        video = drawing.video
        side = self._config.autoencoder.spatial_compression
        frames = self._config.autoencoder.latent_frames(video.frames)
        shape = (self._autoencoder.config.latent_channels, frames, video.height // side, video.width // side)
        noise_1CTHW = noise_of(video.seed, shape)[None].to(self._device)
        given = self._given(drawing)
        latent_1CTHW = self._sampler.draw(noise_1CTHW, self._text(drawing.text), video.condition, given)
        pixels_1CTHW = self._autoencoder.decode(latent_1CTHW.to(self._dtype))
        return _to_uint8(pixels_1CTHW[0].float()).cpu()

    def _text(self, text: str) -> TextPair:
        features = self._text_encoder.encode([text, ""])
        context, pooled = features.context_BLD.to(self._device), features.pooled_BP.to(self._device)
        return TextPair(
            context_1LD=context[:1],
            pooled_1P=pooled[:1],
            negative_context_1LD=context[1:],
            negative_pooled_1P=pooled[1:],
        )

    def _given(self, drawing: Drawing) -> Given:
        video = drawing.video
        if drawing.reference is None:
            return Given()
        picture_CTHW = _first_frame(self._store.get(drawing.reference), drawing.reference, (video.height, video.width))
        latent_C1HW = self._autoencoder.encode(picture_CTHW[None].to(self._device, self._dtype))[0].float()
        return _placed(video.condition, latent_C1HW)


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32, that depends on seed and shape alone."""
    key = np.array([seed, _NOISE_STREAM], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def write_video(frames_THWC: Tensor, path: Path, fps: int, comment: dict[str, Any]) -> None:
    """Write an mp4 (H.264, yuv420p) whose comment holds `comment` as JSON."""
    arrays: list[Frame] = [frame.numpy() for frame in frames_THWC]
    note = json.dumps(comment, sort_keys=True, ensure_ascii=False)
    with disk_full_is_clear(path):
        write_mp4(arrays, path, Fraction(fps), comment=note)


def read_comment(path: Path) -> dict[str, Any] | None:
    """What `write_video` noted; None if the file is no such video."""
    try:
        with av.open(str(path)) as container:
            found = json.loads(container.metadata.get("comment", "null"))
    except (av.FFmpegError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _first_frame(data: bytes, uri: str, target: tuple[int, int]) -> Tensor:
    """The middle of a picture or of a video's first frame, (3, 1, H, W) in [-1, 1]."""
    try:
        info = probe(data)
        _, frame = next(decode(data, cover_size(info.height, info.width, target)))
    except (Unreadable, StopIteration) as error:
        raise DataError(f"{uri}: not a readable picture or video: {error}") from error
    return crop_window(frame[None], Window(0, 1, 1), target, (0.5, 0.5))


def _to_uint8(pixels_CTHW: Tensor) -> Tensor:
    return ((pixels_CTHW.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _placed(kind: ConditionKind, latent_C1HW: Tensor) -> Given:
    """One picture may be the first frame, the last frame, or both."""
    head = latent_C1HW if kind in ("i2v_head", "i2v_loop") else None
    return Given(head, latent_C1HW if kind in ("i2v_tail", "i2v_loop") else None)


def _read(store: ObjectStore, source: str | None, field: str) -> tuple[bytes, str]:
    if source is None:
        raise ConfigError(f"{field}: not set; a sample stage needs the weights of a trained model")
    uri = weights_uri(source)
    return store.get(uri), uri
