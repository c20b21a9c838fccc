"""GPU memory of a training step of our own autoencoders, by arithmetic alone.

What layers and losses keep and need on the way comes from `traced_autoencoders`, as bytes in proportion to sizes and
widths. A micro-batch is walked layer by layer, forward and backward, beside what the engine holds (`model_state`), and
the largest moment is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from videotrain_api.cost import traced_autoencoders
from videotrain_api.cost.autoencoder_layers import Layer, Size, decoder_layers, encoder_layers
from videotrain_api.cost.memory import RESERVE, GpuMemory
from videotrain_api.cost.model_state import ModelState
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.stages import AdversarialPhase, Recompute

_COLOURS = 3
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """One micro-batch on one GPU."""

    samples: int
    size: Size
    """Frames, rows and columns of a clip in pixels."""
    recompute: Recompute
    perceptual: bool
    """A perceptual distance is part of the loss."""
    adversarial: AdversarialPhase | None
    float32: bool = False
    lone_head: bool = False
    """The first frame is also encoded by itself."""


def clip_memory(spec: AutoencoderSpec, state: ModelState, batch: ClipBatch) -> GpuMemory:
    """Memory of one GPU at the largest moment of a step; the autoencoder's architecture is complete."""
    worst = max(_moments(spec, batch), key=sum)
    return GpuMemory(
        weights=state.weights + (PERCEPTUAL_BYTES if batch.perceptual else 0),
        gradients=state.gradients,
        optimizer=state.optimizer,
        average=state.average,
        activations=round(worst[0]),
        temporaries=round(worst[1]) + state.buffers,
        reserve=RESERVE,
    )


PERCEPTUAL_BYTES = 58_900_000
"""Weights of VGG16 without its classifier, in float32."""


def critic_layers(phase: AdversarialPhase, size: Size) -> Iterator[Layer]:
    """Layers of a discriminator that is given clips of that size in pixels."""
    widths = [phase.filters * min(2**number, 8) for number in range(phase.layers + 1)]
    halved = _half(size, time=True)
    yield Layer(kind="critic_in", into=_COLOURS, out=widths[0], before=size, after=halved)
    for number in range(1, phase.layers + 1):
        size, halved = halved, halved if number == phase.layers else _half(halved, time=number < 2)
        yield Layer(kind="critic_layer", into=widths[number - 1], out=widths[number], before=size, after=halved)
    yield Layer(kind="critic_out", into=widths[-1], out=1, before=halved, after=halved)


def _half(size: Size, *, time: bool) -> Size:
    frames, rows, columns = size
    return -(-frames // 2) if time else frames, -(-rows // 2), -(-columns // 2)


def critic_parameters(phase: AdversarialPhase) -> int:
    """How many a discriminator has."""
    layers = list(critic_layers(phase, (1, 1, 1)))
    weights = sum(27 * layer.into * layer.out for layer in layers)
    # The first and the last have a bias, those between a norm.
    return weights + layers[0].out + 1 + sum(2 * layer.out for layer in layers[1:-1])


def features(layer: Layer, samples: int) -> list[float]:
    """What a layer's bytes are proportional to: values before and after it, and of its input at the size after it;
    positions; nothing; what there is once for every clip; weights.
    """
    before, after = samples * prod(layer.before), samples * prod(layer.after)
    return [
        before * layer.into,
        after * layer.out,
        after * layer.into,
        before,
        after,
        1,
        samples * layer.out,
        layer.into * layer.out,
        layer.out**2,
        layer.into,
        layer.out,
    ]


@dataclass(frozen=True)
class _Run:
    kept: float
    forward: float
    backward: float


_Moment = tuple[float, float]
"""Bytes that are kept for the backward pass, and those that come and go."""


def _moments(spec: AutoencoderSpec, batch: ClipBatch) -> Iterator[_Moment]:
    head = encoder_layers(spec, (1, *batch.size[1:])) if batch.lone_head else ()
    layers = [*encoder_layers(spec, batch.size), *head, *decoder_layers(spec, batch.size)]
    at_pixels = (spec.decoder_depths or [0])[0] > 0
    last = max((number for number, layer in enumerate(layers) if at_pixels and layer.kind in _BLOCKS), default=None)
    runs = [
        _evaluated(layer, batch, "none" if number == last else batch.recompute) for number, layer in enumerate(layers)
    ]
    kind = "perceptual" if batch.perceptual else "absolute"
    loss = _evaluated(Layer(kind=kind, into=_COLOURS, out=_COLOURS, before=batch.size, after=batch.size), batch)
    pixels = _COLOURS * batch.samples * prod(batch.size)
    # The clips and those that come next, in float32; what the encoder is given of them.
    outside = 2 * _FLOAT32 * pixels + (_FLOAT32 if batch.float32 else 2) * pixels
    yield from _pass(outside, [*runs, loss])
    if batch.adversarial is not None:
        yield from _adversarial(outside, pixels, runs, loss, batch, batch.adversarial)


_BLOCKS = ("dc_block", "dc_attention")


def _adversarial(
    outside: float, pixels: int, runs: Sequence[_Run], loss: _Run, batch: ClipBatch, phase: AdversarialPhase
) -> Iterator[_Moment]:
    """The reconstruction's gradient at the pixels, then the discriminator's, then its own graph of both clips.

    That graph stays during the autoencoder's backward pass. In float32 stand there the reconstruction, both gradients
    at it, their weighted sum and its product with the reconstruction.
    """
    held = outside + sum(run.kept for run in runs)
    floats = _FLOAT32 * pixels
    yield from _pass(held + floats, [loss])
    critic = [_evaluated(layer, batch) for layer in critic_layers(phase, batch.size)]
    yield from _pass(held + 3 * floats, critic)
    judged = [*critic, *critic]
    for number, run in enumerate(judged):
        yield held + 4 * floats + sum(each.kept for each in judged[:number]), run.forward
    yield from _backward(outside + 5 * floats + sum(run.kept for run in judged), runs)
    yield from _backward(outside + floats, judged)


def _pass(outside: float, runs: Sequence[_Run]) -> Iterator[_Moment]:
    """Forward, then backward."""
    held = outside
    for run in runs:
        yield held, run.forward
        held += run.kept
    yield from _backward(outside, runs)


def _backward(outside: float, runs: Sequence[_Run]) -> Iterator[_Moment]:
    held = outside + sum(run.kept for run in runs)
    for run in reversed(runs):
        yield held, max(run.backward - run.kept, 0.0)
        held -= run.kept


def _evaluated(layer: Layer, batch: ClipBatch, policy: Recompute = "none") -> _Run:
    trace = traced_autoencoders.LAYERS[layer.kind, policy if layer.kind in _BLOCKS else "none"]
    sizes = features(layer, batch.samples)
    factor = 2.0 if batch.float32 else 1.0  # traced in bfloat16; of what is float32 anyway an upper bound

    def bytes_of(vector: traced_autoencoders.Vector) -> float:
        return factor * sum(a * b for a, b in zip(vector, sizes, strict=True))

    return _Run(bytes_of(trace.kept), max(map(bytes_of, trace.forward)), max(map(bytes_of, trace.backward)))
