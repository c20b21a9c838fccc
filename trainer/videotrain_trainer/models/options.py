"""`SampleOptions`: how `sample` draws, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from videotrain_api.resource import sampling
from videotrain_api.resource.stages import ConditionKind, PromptStyle
from videotrain_trainer.diffusion.sampler import Guidance
from videotrain_trainer.networks.latents import PosteriorUse


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Size of a video, how it is drawn, and what its text tells. Defaults are those of a sample stage.

    Raises:
        ValueError: a value can never be drawn with; names the field, the value and what is allowed.
    """

    height: int
    """Pixels; a multiple of the spatial compression times the transformer's patch."""
    width: int
    """The same."""
    frames: int
    """1 + 4k for a HunyuanVideo VAE; 1, or a multiple of 4 from 8 on, for a DC-AE; 1 for FLUX.1's autoencoder."""
    condition: ConditionKind = "t2v"
    """Which frames are given, as in training."""
    negative_prompt: str = ""
    """What guidance leads away from; a distilled model takes none."""
    steps: int = sampling.STEPS
    """Euler steps."""
    guidance: float | Guidance | None = None
    """A number is the scale of text guidance, or the guidance input of a distilled model; unset: 7.5, or 4 for a
    distilled one. The image scale is 3 unless a `Guidance` says otherwise."""
    fps: float | None = sampling.FPS
    """Frame rate that the text tells; None leaves it out, and a picture has none."""
    motion_score: float | None = sampling.MOTION_SCORE
    """Motion score that the text tells; the same."""
    prompt_style: PromptStyle = "fps-motion"
    """Which of the two the model was trained with."""
    shift: float | None = None
    """Alpha of the time shift; by the size of the video, as in training, if None."""
    seed: int = sampling.SEED
    """Of the noise, and of what is sampled of a reference's latents."""
    posterior: PosteriorUse = "sample"
    """What is taken of the distribution that a HunyuanVideo VAE gives for a reference."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames", "steps"):
            self._whole(name, 1, None)
        self._whole("seed", 0, sampling.SEEDS - 1)
        self._one_of("condition", get_args(ConditionKind))
        self._one_of("prompt_style", get_args(PromptStyle))
        self._one_of("posterior", get_args(PosteriorUse))
        for name in ("fps", "shift"):
            self._number(name, getattr(self, name), above=True)
        self._number("motion_score", self.motion_score)
        scales = self.guidance
        for scale in (scales.text, scales.image) if isinstance(scales, Guidance) else (scales,):
            self._number("guidance", scale)

    def scales(self, distilled: bool) -> Guidance:
        """Guidance of the sampler.

        Args:
            distilled: whether the model has a guidance input.
        """
        if isinstance(self.guidance, Guidance):
            return self.guidance
        return Guidance(text=sampling.text_guidance(self.guidance, distilled), image=sampling.IMAGE_GUIDANCE)

    def _whole(self, name: str, least: int, most: int | None) -> None:
        value = getattr(self, name)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < least
            or (most is not None and value > most)
        ):
            upper = "on" if most is None else f"to {most}"
            raise ValueError(f"{name}: {value!r}; allowed: whole numbers from {least} {upper}")

    def _number(self, name: str, value: float | None, above: bool = False) -> None:
        fine = value is None or (isinstance(value, int | float) and math.isfinite(value) and value >= 0)
        if not fine or (above and value == 0):
            raise ValueError(f"{name}: {value!r}; allowed: None or a number {'above 0' if above else 'from 0 on'}")

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
