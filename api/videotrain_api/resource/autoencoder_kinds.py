"""The kinds of autoencoders: one row each, read by every rule, forecast and default that depends on the kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

AutoencoderKindName = Literal["dc-ae", "hunyuan-vae", "diffusers"]
Causality = Literal["none", "causal", "chunk"]


@dataclass(frozen=True)
class TimeAxis:
    """How frames and latent frames of a clip belong together."""

    compression: int
    """Frames per latent frame."""
    causality: Causality
    """`causal`: the first latent frame stands for a single frame. `none`: each stands for a group of frames, which has
    seen the whole clip. `chunk`: the same groups, but a chunk of them has seen no later chunk."""

    @property
    def causal(self) -> bool:
        """Whether the first frame has a latent frame of its own, so that clips have 1 + ck frames."""
        return self.causality == "causal"

    def fits(self, frames: int) -> bool:
        """Whether a clip of so many frames can be encoded; a picture always can."""
        return frames == 1 or frames % self.compression == (1 % self.compression if self.causal else 0)

    def draws(self, frames: int) -> bool:
        """Whether a clip of so many frames can be decoded: a lone latent frame is a picture, not a group of frames."""
        return frames == 1 or (self.fits(frames) and frames > max(1, self.compression))

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of so many frames; a picture has one."""
        if frames == 1:
            return 1
        return (frames - self.causal) // self.compression + self.causal

    def frames(self, latent_frames: int) -> int:
        """Frames of a clip of so many latent frames, more than one."""
        return self.compression * (latent_frames - self.causal) + self.causal

    def nearest(self, frames: int) -> tuple[int, int]:
        """The lengths below and above one that cannot be encoded."""
        below = self.causal + (frames - self.causal) // self.compression * self.compression
        return below or 1, below + self.compression

    @property
    def allowed(self) -> str:
        """The lengths that can be encoded, in words."""
        step = self.compression
        if self.causal:
            return f"1, {1 + step}, {1 + 2 * step}, ... (1 + {step}k)"
        return f"1 for pictures or a multiple of {step}"


@dataclass(frozen=True, kw_only=True)
class AutoencoderKind:
    """What is true of every autoencoder of a kind. None: the specification says."""

    needs: frozenset[str]
    """Fields of the specification that must be set, by themselves or by the preset."""
    takes: frozenset[str]
    """Fields that may be set besides; those of the other kinds are refused."""
    temporal_compression: int | None
    causality: Causality | None
    stages: range | None
    """How many numbers widths, depths and decoderDepths may have; each stage but the last halves the picture."""
    least_depth: int = 1
    """Fewest blocks of a stage."""
    trainable: bool
    """Whether a stage of task autoencoder can train it."""
    in_folder: bool
    """Its weights are a folder with `config.json`, not one file."""


DC_AE_ATTENTION_STAGES: Final = 3
"""The last stages of a DC-AE are made of linear attention, and halve the time between them."""
_LEVELS: Final = frozenset({"widths", "depths", "decoder_depths"})
KINDS: Final[dict[str, AutoencoderKind]] = {
    "dc-ae": AutoencoderKind(
        needs=_LEVELS,
        takes=frozenset(),
        temporal_compression=4,
        causality="none",
        stages=range(DC_AE_ATTENTION_STAGES + 1, 7),
        least_depth=0,
        trainable=True,
        in_folder=False,
    ),
    "hunyuan-vae": AutoencoderKind(
        needs=_LEVELS,
        takes=frozenset({"norm_groups", "posterior"}),
        temporal_compression=4,
        causality="causal",
        stages=range(4, 5),
        trainable=False,
        in_folder=False,
    ),
    "diffusers": AutoencoderKind(
        needs=frozenset({"compression", "causality"}),
        takes=frozenset({"posterior", "latent_mean", "latent_std", "decode_flops_per_pixel"}),
        temporal_compression=None,
        causality=None,
        stages=None,
        trainable=False,
        in_folder=True,
    ),
}
"""The table. A new kind is a row here and one in the trainer's `networks.registry`."""
OF_SOME_KINDS: Final = frozenset[str]().union(*(kind.needs | kind.takes for kind in KINDS.values()))
"""Fields of the specification that not every kind has."""
