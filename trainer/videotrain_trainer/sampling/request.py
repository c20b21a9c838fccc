"""What is asked of a drawing: one frozen value per video, whose hash names everything that its pixels depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.stages import ConditionKind, PromptStyle
from videotrain_trainer.diffusion.sampler import Guidance
from videotrain_trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How videos of a batch are drawn. Where they run, in which order and with how much memory is not in it."""

    width: int
    height: int
    frames: int
    fps: float
    steps: int
    text_guidance: float
    """For a distilled model the value of its guidance input."""
    image_guidance: float
    oscillate_text: bool = True
    oscillate_image: bool = True
    dynamic_image_guidance: bool = True
    shift: float | None = None
    """Alpha of the time shift; by the size, as in training, if None."""
    motion_score: float | None = None
    """None leaves it out of the text."""
    prompt_style: PromptStyle = "fps-motion"
    candidates: int = 1
    scorer: str | None = None

    @property
    def guidance(self) -> Guidance:
        """Scales of the sampler."""
        return Guidance(
            text=self.text_guidance,
            image=self.image_guidance,
            oscillate_text=self.oscillate_text,
            oscillate_image=self.oscillate_image,
            dynamic_image=self.dynamic_image_guidance,
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video."""

    prompt: str
    """Without its suffix."""
    text: str
    """What is encoded: the prompt with its suffix."""
    negative: str = ""
    condition: ConditionKind = "t2v"
    image: str | None = None
    """URI of the picture, or of a video whose first frame is taken, of the i2v kinds."""
    last_image: str | None = None
    """URI of the last frame of i2v_loop; `image` if None."""
    video: str | None = None
    """URI of the reference video of the v2v kinds."""
    seed: int
    """Of the noise; candidate number i has seed + i."""
    settings: Settings
    models: str
    """Names the weights."""

    def describe(self) -> dict[str, Any]:
        """Everything, as JSON-compatible data."""
        return asdict(self)

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of `describe`."""
        text = json.dumps(self.describe(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def candidate(self, index: int) -> Request:
        """The same with the seed of a candidate."""
        return replace(self, seed=self.seed + index)


def check_reference(request: Request, cond_embed: bool, where: str) -> None:
    """Refuse references that do not fit the condition.

    Args:
        request: to check.
        cond_embed: whether the model has a condition input.
        where: field or line, for messages.

    Raises:
        ConfigError: names what does not fit.
    """
    kind = request.condition
    if kind.startswith("i2v") != (request.image is not None):
        raise ConfigError(f"{where}: condition {kind!r} and image {request.image!r} do not fit: {_needs('i2v')}")
    if kind.startswith("v2v") != (request.video is not None):
        raise ConfigError(f"{where}: condition {kind!r} and video {request.video!r} do not fit: {_needs('v2v')}")
    if request.last_image is not None and kind != "i2v_loop":
        raise ConfigError(f"{where}: condition {kind!r} has no last image; only i2v_loop has one")
    if kind != "t2v" and request.settings.frames == 1:
        raise ConfigError(f"{where}: condition {kind!r}: a picture takes no reference; draw more frames or use t2v")
    if kind != "t2v" and not cond_embed:
        raise ConfigError(f"{where}: condition {kind!r} needs a model with spec.model.condEmbed")


def check_frames(frames: int, autoencoder: AutoencoderSpec, where: str) -> None:
    """Refuse lengths that the autoencoder cannot decode to.

    Raises:
        ConfigError: names what it decodes to.
    """
    step, causal = autoencoder.temporal_compression, autoencoder.causal
    # One latent frame of an autoencoder that is not causal decodes to one frame, so four frames cannot be drawn.
    fits = frames == 1 or (frames % step == 1 if causal else frames % step == 0 and frames > step)
    if not fits:
        allowed = f"1 + {step}k" if causal else f"1 or {step}k with k > 1"
        raise ConfigError(f"{where}: {frames}: this autoencoder decodes to {allowed} frames")


def _needs(kind: str) -> str:
    return f"the {kind} kinds need one and no other kind takes one"
