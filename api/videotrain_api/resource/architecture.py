"""What is trained: the shapes of the transformer, the autoencoder and the text encoder."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from videotrain_api.schema import ApiModel

TIME_COMPRESSION: Final = 4
"""Frames per latent frame of every video autoencoder."""


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
    weights: str | None = None
    """URI of safetensors weights to start from; random initialisation if unset."""


class AutoencoderTiling(ApiModel):
    """Overlapping tiles in which an autoencoder codes what is larger than a tile, so that memory does not grow with it.

    Tiles change latents a little, so a transformer should see those of the tiling that it was trained with.
    """

    pixels: int | None = Field(default=None, ge=1, le=65_536)
    """Rows and columns of a tile, a multiple of the spatial compression; unset codes whole pictures."""
    frames: int | None = Field(default=None, ge=1, le=65_536)
    """Frames of a tile, a multiple of 4 (of 8 or more for dc-ae); unset codes all frames at once."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Share of a tile that it has in common with the next; a whole number of latents."""


class AutoencoderSpec(ApiModel):
    """The video autoencoder."""

    preset: str | None = None
    """Named configuration, such as `dc-ae-f32t4c128`, `hunyuan-vae` or `dc-ae-tiny`; fields below override it."""
    kind: Literal["dc-ae", "hunyuan-vae"] | None = None
    """Architecture: Video DC-AE (4x32x32, not causal) or HunyuanVideo VAE (4x8x8, causal)."""
    latent_channels: int | None = Field(default=None, ge=1, le=65_536)
    """Channels of a latent."""
    widths: list[Annotated[int, Field(le=1_048_576)]] | None = Field(default=None, min_length=1, max_length=16)
    """Channels of each encoder stage, from pixels to latents."""
    depths: list[Annotated[int, Field(le=4096)]] | None = Field(default=None, min_length=1, max_length=16)
    """Blocks of each encoder stage, from pixels to latents."""
    decoder_depths: list[Annotated[int, Field(le=4096)]] | None = Field(default=None, min_length=1, max_length=16)
    """Blocks of each decoder stage in the same order (pixels first); as many as `depths` has."""
    scaling_factor: float | None = Field(default=None, gt=0)
    """Latents are multiplied by it (hunyuan-vae) or divided by it (dc-ae), so that they have about unit variance.
    If unset, the scale that an autoencoder stage measured and stored with its weights."""
    norm_groups: int | None = Field(default=None, ge=1, le=65_536)
    """Groups of the norms of a hunyuan-vae, a divisor of every width; dc-ae has no such norms."""
    posterior: Literal["mode", "sample"] | None = None
    """How a hunyuan-vae draws latents from its distribution: its `mode`, or a `sample` of it as the published models
    were trained (drawn once per clip, from the run's seed). dc-ae has no distribution."""
    tiling: AutoencoderTiling | None = None
    """Tiles for encoding and decoding. The preset's if unset; clips are coded whole if it has none."""
    weights: str | None = None
    """URI of safetensors weights; needed unless a stage with task `autoencoder` trains them."""

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent row and column: every stage but the last halves the picture. Needs `widths`."""
        if self.widths is None:
            raise ValueError("widths is not set; complete the specification with presets.complete_autoencoder first")
        return int(2 ** (len(self.widths) - 1))

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame; the same for both kinds."""
        return TIME_COMPRESSION

    @property
    def causal(self) -> bool:
        """Whether the first frame has a latent frame of its own, so that clips have 1 + 4k frames."""
        return self.kind == "hunyuan-vae"

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of so many frames; a picture (1) always has one."""
        if frames == 1:
            return 1
        return (frames - 1) // TIME_COMPRESSION + 1 if self.causal else frames // TIME_COMPRESSION


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
    weights: str | None = None
    """Directory or URI with both encoders; required by `t5-clip`, refused by `bytes`."""
    trim_padding: bool = False
    """Leave pad tokens out of T5, which is the same as masking them. Off, they are encoded and attended to without a
    mask, as the released weights were trained. Only for `t5-clip`; the rows that `bytes` pads are always zero."""
