"""Parameters, tokens and FLOPs of the MMDiT, by formula. Standard library and our models only.

A multiply-add is two FLOPs. Model FLOPs are forward plus backward (three times forward); recomputed activations are
never counted, so MFU from these numbers means the same on every layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from videotrain_api.capabilities import LINEAR_LAYERS
from videotrain_api.config import aspect
from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket, LoraAdapter, ParallelLayout
from videotrain_api.resource.trainrun import VideoTrainingRun

TIME_FEATURES = 256
"""Width of the sinusoid that embeds the timestep (and the guidance scale)."""


@dataclass(frozen=True)
class MmditShape:
    """The numbers that parameters and FLOPs depend on; see `mmdit_shape`."""

    hidden: int
    heads: int
    feed_forward: int
    double_blocks: int
    single_blocks: int
    patch_channels: int
    """Features of a packed latent token."""
    condition_channels: int
    """Features of a packed condition token; 0 without the input."""
    guidance: bool
    context: int
    """Width of the text features."""
    pooled: int
    """Width of the pooled text feature."""


def mmdit_shape(model: TransformerSpec, autoencoder: AutoencoderSpec, text: TextEncoderSpec) -> MmditShape:
    """Collect the sizes of completed specifications (see `presets.complete_transformer`)."""
    hidden, heads, patch, latent = model.hidden_size, model.num_heads, model.patch_size, autoencoder.latent_channels
    if not (hidden and heads and patch and latent and model.mlp_ratio):
        raise ValueError("the specifications are not complete; call presets.complete_transformer first")
    return MmditShape(
        hidden=hidden,
        heads=heads,
        feed_forward=int(hidden * model.mlp_ratio),
        double_blocks=model.double_blocks or 0,
        single_blocks=model.single_blocks or 0,
        patch_channels=latent * patch**2,
        condition_channels=(latent + 1) * patch**2 if model.cond_embed else 0,
        guidance=bool(model.guidance_embed),
        context=text.context_dim,
        pooled=text.pooled_dim,
    )


def run_shape(run: VideoTrainingRun) -> MmditShape:
    """The sizes of a run's transformer.

    Raises:
        ManifestError: a preset is unknown or incomplete.
    """
    spec = run.spec
    model, autoencoder = complete_transformer(spec.model), complete_autoencoder(spec.autoencoder)
    return mmdit_shape(model, autoencoder, spec.text_encoder)


def parameters(shape: MmditShape) -> int:
    """Number of trainable parameters, counted from the shape; equal to that of the model that is built from it."""
    d = shape.hidden
    total = shape.double_blocks * block_parameters(shape, "double")
    total += shape.single_blocks * block_parameters(shape, "single")
    total += _linear(shape.patch_channels, d) + _linear(shape.context, d)
    total += (2 if shape.guidance else 1) * (_linear(TIME_FEATURES, d) + _linear(d, d))
    total += _linear(shape.pooled, d) + _linear(d, d)
    total += _linear(shape.condition_channels, d) if shape.condition_channels else 0
    return total + _linear(d, shape.patch_channels) + _linear(d, 2 * d)


def block_parameters(shape: MmditShape, kind: Literal["double", "single"]) -> int:
    """Parameters of one two-stream or one-stream block."""
    d, ff, head = shape.hidden, shape.feed_forward, shape.hidden // shape.heads
    if kind == "double":
        return 2 * (4 * _linear(d, d) + _linear(d, ff) + _linear(ff, d) + 2 * head + _linear(d, 6 * d))
    return _linear(d, 3 * d + ff) + _linear(d + ff, d) + 2 * head + _linear(d, 3 * d)


def adapter_parameters(shape: MmditShape, lora: LoraAdapter) -> int:
    """Parameters of the low-rank additions to the layers that an adapter names."""
    total = 0
    for kind, layer, count, sizes in _linear_layers(shape):
        if any(f".{kind}.0.{layer}".endswith(f".{target}") for target in lora.targets):
            total += count * lora.rank * sum(sizes)
    return total


@dataclass(frozen=True)
class QuantizedBase:
    """Weights of the blocks' linear layers, as an adapter's frozen base holds them in 8 bits."""

    weights: int
    rows: int
    """Outputs; each has a scale."""
    largest: int
    """Weights of the largest layer."""


def quantized_base(shape: MmditShape) -> QuantizedBase:
    """What `lora.quantizeBase` is for: every linear layer of a block, without its bias."""
    layers = [(count, *sizes) for kind, _, count, sizes in _linear_layers(shape) if kind]
    return QuantizedBase(
        weights=sum(count * inputs * outputs for count, inputs, outputs in layers),
        rows=sum(count * outputs for count, _, outputs in layers),
        largest=max((inputs * outputs for count, inputs, outputs in layers if count), default=0),
    )


def _linear_layers(shape: MmditShape) -> Iterator[tuple[str, str, int, tuple[int, int]]]:
    """Kind of block (or nothing), name in it, how many there are, and the sizes of input and output."""
    d, ff = shape.hidden, shape.feed_forward
    widths = {
        "proj": (d, d),
        "mlp.0": (d, ff),
        "mlp.2": (ff, d),
        "v_mlp": (d, d + ff),
        "linear2": (d + ff, d),
        "mod.lin": (d, 6 * d),
        "modulation.lin": (d, 3 * d),
        "img_in": (shape.patch_channels, d),
        "txt_in": (shape.context, d),
        "cond_in": (shape.condition_channels, d),
        "time_in.in_layer": (TIME_FEATURES, d),
        "vector_in.in_layer": (shape.pooled, d),
        "out_layer": (d, d),
        "final_layer.linear": (d, shape.patch_channels),
        "adaLN_modulation.1": (d, 2 * d),
    }
    blocks = {"double_blocks": shape.double_blocks, "single_blocks": shape.single_blocks, "": 1}
    for kind, layers in LINEAR_LAYERS.items():
        for layer in layers:
            yield kind, layer, blocks[kind], next(sizes for end, sizes in widths.items() if layer.endswith(end))


def forward_flops(shape: MmditShape, image_tokens: int, text_tokens: int) -> int:
    """Forward FLOPs of one sample: matrix products of the blocks, attention, input and output, modulation."""
    return product_flops(shape, image_tokens, text_tokens) + attention_flops(shape, image_tokens + text_tokens)


def attention_flops(shape: MmditShape, tokens: int) -> int:
    """Forward FLOPs of all attention products of one sample (full, not causal)."""
    return (shape.double_blocks + shape.single_blocks) * 4 * tokens * tokens * shape.hidden


def train_flops(shape: MmditShape, image_tokens: int, text_tokens: int) -> int:
    """Forward and backward FLOPs of one training sample, without recomputation."""
    return 3 * forward_flops(shape, image_tokens, text_tokens)


def recomputed_flops(shape: MmditShape, tokens: int, double_blocks: int, single_blocks: int) -> int:
    """FLOPs of the backward pass of one sample that repeat the forward pass of so many blocks of each kind.

    Args:
        shape: of the model.
        tokens: image and text tokens of the sample.
        double_blocks: two-stream blocks that keep only their inputs.
        single_blocks: one-stream blocks that keep only their inputs.
    """
    d, (double, single) = shape.hidden, block_flops(shape)
    products = (double_blocks * double + single_blocks * single) * tokens
    modulation = 2 * (12 * double_blocks + 3 * single_blocks) * d * d
    return products + modulation + (double_blocks + single_blocks) * 4 * tokens * tokens * d


def recomputed_blocks(shape: MmditShape, layout: ParallelLayout) -> tuple[int, int]:
    """Two-stream and one-stream blocks that the policy `full` computes again; `selective` repeats no product."""
    double, single = layout.checkpoint_double_blocks, layout.checkpoint_single_blocks
    return shape.double_blocks if double is None else double, shape.single_blocks if single is None else single


def block_flops(shape: MmditShape) -> tuple[int, int]:
    """Forward FLOPs of the products of one two-stream and one one-stream block, per token and without modulation."""
    d, ff = shape.hidden, shape.feed_forward
    return 2 * (4 * d * d + 2 * d * ff), 2 * (d * (3 * d + ff) + (d + ff) * d)


def product_flops(shape: MmditShape, image: int, text: int) -> int:
    """Forward FLOPs of the matrix products of one sample: blocks, input and output, modulation."""
    d, (double, single) = shape.hidden, block_flops(shape)
    blocks = (shape.double_blocks * double + shape.single_blocks * single) * (image + text)
    edges = image * d * (2 * shape.patch_channels + shape.condition_channels) + text * shape.context * d
    modulation = (12 * shape.double_blocks + 3 * shape.single_blocks + 2) * d * d
    vector = d * (TIME_FEATURES + shape.pooled + 2 * d) + (d * (TIME_FEATURES + d) if shape.guidance else 0)
    return blocks + 2 * (edges + modulation + vector)


def _linear(into: int, out: int) -> int:
    return into * out + out


def grid(model: TransformerSpec, autoencoder: AutoencoderSpec) -> int:
    """Pixels per token row and column: both sides of every clip are multiples of it."""
    if not model.patch_size:
        raise ValueError("the specification is not complete; call presets.complete_transformer first")
    return autoencoder.spatial_compression * model.patch_size


def image_tokens(model: TransformerSpec, autoencoder: AutoencoderSpec, frames: int, height: int, width: int) -> int:
    """Tokens of a clip of frames x height x width pixels."""
    side = grid(model, autoencoder)
    return autoencoder.time.latent_frames(frames) * (height // side) * (width // side)


def bucket_tokens(model: TransformerSpec, autoencoder: AutoencoderSpec, bucket: Bucket) -> int:
    """Tokens of the longest square clip of a bucket: the size by which batches are planned."""
    side = aspect.side_of(bucket.resolution)
    return image_tokens(model, autoencoder, bucket.frames, side, side)
