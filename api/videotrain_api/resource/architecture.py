"""What is trained: the shapes of the transformer, the autoencoder and the text encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from videotrain_api.resource.autoencoder_kinds import KINDS, AutoencoderKindName, Causality, TimeAxis
from videotrain_api.resource.locations import Location
from videotrain_api.schema import ApiModel


class TransformerSpec(ApiModel):
    """The MMDiT. `preset` fills every field that is not written out; see `videotrain_api.config.presets`."""

    preset: str | None = None
    """Named configuration, such as `mmdit-11b`, `mmdit-11b-dcae` or `mmdit-tiny`; fields below override it."""
    hidden_size: int | None = Field(default=None, ge=8, le=1_048_576)
    """Width of the token stream. The preset's value if unset."""
    num_heads: int | None = Field(default=None, ge=1, le=65_536)
    """Attention heads; hiddenSize must be a multiple of it."""
    double_blocks: int | None = Field(default=None, ge=0, le=4096)
    """Number of two-stream blocks."""
    single_blocks: int | None = Field(default=None, ge=0, le=4096)
    """Number of one-stream blocks."""
    mlp_ratio: float | None = Field(default=None, gt=0, le=1024)
    """Feed-forward width divided by hiddenSize."""
    rope_axes: list[Annotated[int, Field(le=1_048_576)]] | None = Field(default=None, min_length=3, max_length=3)
    """Head dimensions for time, rows and columns; even numbers whose sum is the head dimension."""
    patch_size: int | None = Field(default=None, ge=1, le=1024)
    """Spatial patch in latent pixels: 2 for 8x8 autoencoders, 1 for 32x32 ones."""
    cond_embed: bool | None = None
    """Has the image/video condition input; needed by every conditioning other than t2v."""
    guidance_embed: bool | None = None
    """Has the distilled guidance input (FLUX.1-dev image models)."""
    weights: Location | None = None
    """URI of safetensors weights to start from; random initialisation if unset."""


class AutoencoderTiling(ApiModel):
    """Overlapping tiles in which an autoencoder codes what is larger than a tile, so that memory does not grow with it.

    Tiles change latents a little, so a transformer should see those of the tiling that it was trained with.
    """

    pixels: int | None = Field(default=None, ge=1, le=65_536)
    """Rows and columns of a tile, a multiple of the spatial compression; unset codes whole pictures."""
    frames: int | None = Field(default=None, ge=1, le=65_536)
    """Frames of a tile, a multiple of the temporal compression (twice that or more unless causal); unset codes all
    frames at once."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Share of a tile that it has in common with the next; a whole number of latents."""


class AutoencoderCompression(ApiModel):
    """Samples per latent of an autoencoder of kind diffusers."""

    time: int = Field(ge=1, le=64)
    """Frames per latent frame: 4 for Wan and HunyuanVideo 1.5, 8 for LTX and Cosmos, 6 for Mochi."""
    space: int = Field(ge=1, le=256)
    """Pixels per latent row and column."""


Statistic = Annotated[list[float], Field(min_length=1, max_length=65_536)]


class AutoencoderSpec(ApiModel):
    """The video autoencoder: from pixels to the latents that are trained on, and back."""

    preset: str | None = Field(default=None, max_length=63)
    """Named configuration, such as `dc-ae-f32t4c128`, `hunyuan-vae` or `dc-ae-tiny`; fields below override it."""
    kind: AutoencoderKindName | None = None
    """Architecture: Video DC-AE (4x32x32 as published, not causal), HunyuanVideo VAE (4x8x8, causal), or `diffusers`:
    any video autoencoder of that library, from the folder that its `save_pretrained` writes."""
    latent_channels: int | None = Field(default=None, ge=1, le=65_536)
    """Channels of a latent."""
    compression: AutoencoderCompression | None = None
    """Samples per latent; needed by kind diffusers, fixed by the other kinds."""
    causality: Causality | None = None
    """Which frames a latent frame has seen; needed by kind diffusers, fixed by the other kinds. `causal`: earlier ones
    alone, and clips have 1 + ck frames; `none`: all of them, and clips have ck frames; `chunk`: those of its chunk and
    earlier ones, and clips have ck frames (c is the temporal compression)."""
    widths: list[Annotated[int, Field(le=1_048_576)]] | None = Field(default=None, min_length=1, max_length=16)
    """Channels of each encoder stage, from pixels to latents; kind diffusers reads them from its folder. With four,
    five or six a dc-ae has latents of 8, 16 or 32 pixels."""
    depths: list[Annotated[int, Field(le=4096)]] | None = Field(default=None, min_length=1, max_length=16)
    """Blocks of each encoder stage, from pixels to latents; a stage of a dc-ae that has none only resamples."""
    decoder_depths: list[Annotated[int, Field(le=4096)]] | None = Field(default=None, min_length=1, max_length=16)
    """Blocks of each decoder stage in the same order (pixels first); as many as `depths` has."""
    scaling_factor: float | None = Field(default=None, gt=0)
    """Latents are multiplied by it (hunyuan-vae, diffusers) or divided by it (dc-ae), so that they have about unit
    variance. If unset, the scale that an autoencoder stage measured and stored with its weights, or that of the folder
    (diffusers)."""
    latent_mean: Statistic | None = None
    """Mean of each latent channel, subtracted before the scale; only for kind diffusers. The folder's if unset."""
    latent_std: Statistic | None = None
    """Standard deviation of each latent channel, which latents are divided by; as latentMean."""
    norm_groups: int | None = Field(default=None, ge=1, le=65_536)
    """Groups of the norms of a hunyuan-vae, a divisor of every width; dc-ae has no such norms."""
    posterior: Literal["mode", "sample"] | None = None
    """How latents are drawn from the distribution that a hunyuan-vae or diffusers autoencoder gives: its `mode`, or a
    `sample` of it as the published models were trained (drawn once per clip, from the run's seed). dc-ae has none."""
    tiling: AutoencoderTiling | None = None
    """Tiles for encoding and decoding. The preset's if unset; clips are coded whole if it has none."""
    decode_flops_per_pixel: int | None = Field(default=None, ge=0)
    """FLOPs of decoding, divided by frames x height x width, for the forecast of sample stages; only for kind
    diffusers, where no formula counts them. Not counted if unset."""
    weights: Location | None = None
    """URI of safetensors weights, for kind diffusers of a folder with config.json; needed unless a stage with task
    `autoencoder` trains them."""

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent row and column. Needs `compression`, or `widths`: every stage but the last halves it."""
        if self.compression is not None:
            return self.compression.space
        if self.widths is None:
            raise ValueError("widths is not set; complete the specification with presets.complete_autoencoder first")
        return int(2 ** (len(self.widths) - 1))

    @property
    def time(self) -> TimeAxis:
        """How frames and latent frames belong together. Needs `kind` and what it leaves to the specification."""
        row = KINDS[self.kind] if self.kind else None
        step = self.compression.time if self.compression else row and row.temporal_compression
        causality = self.causality or (row and row.causality)
        if not step or not causality:
            raise ValueError("compression or causality is not set; call presets.complete_autoencoder first")
        return TimeAxis(step, causality)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame."""
        return self.time.compression

    @property
    def causal(self) -> bool:
        """Whether the first frame has a latent frame of its own."""
        return self.time.causal


class TextEncoderSpec(ApiModel):
    """How captions become features."""

    kind: Literal["bytes", "t5-clip"] = "bytes"
    """`bytes`: a small seeded encoder over UTF-8 bytes, for tests and demos. `t5-clip`: T5-XXL features and the
    pooled CLIP-L feature, from mounted weights."""
    max_tokens: int = Field(default=512, ge=1, le=4096)
    """Longest caption in tokens; longer ones are cut."""
    context_dim: int = Field(default=4096, ge=8, le=1_048_576)
    """Width of the token features (4096 for T5-XXL)."""
    pooled_dim: int = Field(default=768, ge=8, le=1_048_576)
    """Width of the pooled feature (768 for CLIP-L)."""
    weights: Location | None = None
    """Directory or URI with both encoders; required by `t5-clip`, refused by `bytes`."""
    trim_padding: bool = False
    """Leave pad tokens out of T5, which is the same as masking them. Off, they are encoded and attended to without a
    mask, as the released weights were trained. Only for `t5-clip`; the rows that `bytes` pads are always zero."""
