"""What is asked of a drawing: one immutable value per video, whose hash names everything that its pixels depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.references import frames_refusal, misfits, refusal
from videotrain_api.resource.sampling import NO_NEGATIVE
from videotrain_api.resource.stages import ConditionKind, PromptStyle
from videotrain_trainer.diffusion.sampler import Guidance
from videotrain_trainer.errors import ConfigError

PLACES = ("image", "last_image", "video", "models")
"""Fields of a request that say where something is; `contents` says what is there."""


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
    """All that the pixels of one video depend on; `hash` names it."""

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
    """Where the weights are, for people."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """What is in weights and references, by what they are for; see `sampling.contents`."""

    def describe(self) -> dict[str, Any]:
        """Everything, as JSON-compatible data."""
        return asdict(self)

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of `describe` without places: what is in a file counts, not its path."""
        described = {name: value for name, value in self.describe().items() if name not in PLACES}
        text = json.dumps(described, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def candidate(self, index: int) -> Request:
        """The same with the seed of a candidate."""
        return replace(self, seed=self.seed + index)


def check_request(request: Request, model: TransformerSpec, autoencoder: AutoencoderSpec, where: str) -> None:
    """Refuse references that do not fit the condition, and what does not fit models or length.

    Args:
        request: to check.
        model: resolved.
        autoencoder: resolved.
        where: field or line, for messages.

    Raises:
        ConfigError: names what does not fit.
    """
    kind = request.condition
    given = {"image": request.image, "video": request.video, "last_image": request.last_image}
    for reference in misfits(kind, given):
        value = given[reference.field]
        raise ConfigError(
            f"{where}: condition {kind!r} and {reference.field} {value!r} do not fit: {reference.allowed}"
        )
    refused = refusal(kind, request.settings.frames, autoencoder.time, bool(model.cond_embed))
    if refused:
        raise ConfigError(f"{where}: condition {kind!r}: {refused}")
    if request.negative and model.guidance_embed:
        raise ConfigError(f"{where}: negative {request.negative!r}: {NO_NEGATIVE}")


def check_frames(frames: int, autoencoder: AutoencoderSpec, where: str) -> None:
    """Refuse lengths that the autoencoder cannot decode to.

    Raises:
        ConfigError: names what it decodes to.
    """
    refused = frames_refusal(frames, autoencoder.time)
    if refused:
        raise ConfigError(f"{where}: {frames}: {refused}")
