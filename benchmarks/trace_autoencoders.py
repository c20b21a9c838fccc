"""What layers of an autoencoder that is trained keep and need on the way, and what its losses need.

Every layer of the project's own networks runs forward and backward on torch's meta device at several sizes, and the
bytes alive after each operation are solved for the features of `videotrain_api.cost.autoencoder_memory`. The operations
are the same at all sizes, so what is found is true at all sizes. `write` puts it into
`videotrain_api.cost.traced_autoencoders`, from which `videotrain plan` and the rules calculate; `check` compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from autoencoder_memory import LiveBytes
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from trace_memory import Trace, free_gradients

from videotrain_api.cost.autoencoder_layers import Layer
from videotrain_api.cost.autoencoder_memory import features
from videotrain_api.resource.stages import PerceptualLoss
from videotrain_trainer.networks.autoencoders import dc_ae
from videotrain_trainer.networks.losses.discriminator import Discriminator, DiscriminatorConfig
from videotrain_trainer.networks.losses.perceptual import PerceptualDistance
from videotrain_trainer.parallel.activation import TrainedBlocks
from videotrain_trainer.reconstruction.losses import ReconstructionLoss

POLICIES = ("none", "selective", "full")
BLOCKS = ("dc_block", "dc_attention")
"""Kinds that the policies of recomputation are for."""
ROUNDING = 1e-6
"""Of the bytes, that solving for the features may leave."""


class Events(LiveBytes):
    """Bytes alive after each operation, without weights and inputs."""

    def __init__(self, outside: Sequence[Tensor]) -> None:
        super().__init__()
        self.events: list[int] = []
        self.outside = {tensor.untyped_storage()._cdata for tensor in outside}

    def hold(self, tensor):
        if tensor.untyped_storage()._cdata not in self.outside:
            super().hold(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        self.events.append(self.now)
        return out


class Run(NamedTuple):
    """One layer at one size, bytes."""

    kept: int
    forward: list[int]
    backward: list[int]


Build = Callable[[Layer, int], nn.Module]


class Loss(nn.Module):
    """The loss of a reconstruction; the clip is held outside."""

    def __init__(self, loss: ReconstructionLoss, layer: Layer, samples: int) -> None:
        super().__init__()
        self.loss, self.clip = loss, torch.empty(samples, 3, *layer.before)

    def forward(self, out_BCTHW: Tensor) -> Tensor:
        return self.loss(out_BCTHW, self.clip)


class CriticLayers(nn.Module):
    """Some layers of a discriminator, as it runs them."""

    def __init__(self, critic: Discriminator, chosen: slice) -> None:
        super().__init__()
        critic.main = critic.main[chosen]
        self.critic = critic

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.critic._score(x_BCTHW, None)


def critic_layer(layer: Layer) -> nn.Module:
    """A layer between the first and the last, whose widths and stride are the layer's."""
    found = CriticLayers(Discriminator(DiscriminatorConfig(filters=layer.out // 2, layers=2)), slice(2, 5))
    conv, stride = cast("nn.Conv3d", found.critic.main[0]), (layer.step, 2, 2)
    found.critic.main[0] = type(conv)(layer.into, layer.out, conv.kernel_size, stride, conv.padding, bias=False)
    return found


def critic_end(filters: int, chosen: slice) -> nn.Module:
    """The first or the last layer, the latter with four times as many channels."""
    return CriticLayers(Discriminator(DiscriminatorConfig(filters=filters, layers=2)), chosen)


def perceptual(layer: Layer, samples: int) -> nn.Module:
    return Loss(ReconstructionLoss(PerceptualLoss(weights="file:///none"), PerceptualDistance()), layer, samples)


BUILDS: Mapping[str, Build] = {
    "dc_in": lambda x, _: dc_ae.Conv((x.into, x.out)),
    "dc_block": lambda x, _: dc_ae.Residual(dc_ae.ConvPair(x.out)),
    "dc_attention": lambda x, _: dc_ae.AttentionBlock(x.out),
    "dc_down": lambda x, _: dc_ae.Downsample((x.into, x.out), (x.step, 2, 2)),
    "dc_up": lambda x, _: dc_ae.Upsample((x.into, x.out), (x.step, 2, 2)),
    "dc_project_out": lambda x, _: dc_ae.ProjectOut((x.into, x.out)),
    "dc_project_in": lambda x, _: dc_ae.ProjectIn((x.into, x.out)),
    "dc_head": lambda x, _: dc_ae.Stage([dc_ae.RMSNorm3d(x.into), nn.ReLU(), dc_ae.Conv((x.into, x.out))]),
    "absolute": lambda x, samples: Loss(ReconstructionLoss(None, None), x, samples),
    "perceptual": perceptual,
    "critic_in": lambda x, _: critic_end(x.out, slice(2)),
    "critic_layer": lambda x, _: critic_layer(x),
    "critic_out": lambda x, _: critic_end(x.into // 4, slice(8, 9)),
}
"""How a layer of each kind is built, of so many samples."""


def layers(kind: str) -> Iterator[tuple[int, Layer]]:
    """Samples and layers to trace: sizes in no proportion to one another."""
    draw = np.random.default_rng(0)
    for number in range(32):
        # From two samples on: a single one would spare a loss the copy of its frames.
        samples, frames, rows, columns, ratio = (int(n) for n in draw.integers(2, 6, 5))
        into, out = (64 * int(n) for n in draw.integers(1, 9, 2))
        size, step = (4 * frames, 32 * rows, 32 * columns), 1 + number % 2
        small = (size[0] // step, size[1] // 2, size[2] // 2)
        widths = {
            **dict.fromkeys(BLOCKS, (out, out)),
            **dict.fromkeys(("absolute", "perceptual"), (3, 3)),
            **dict.fromkeys(("dc_in", "critic_in"), (3, out)),
            "dc_head": (into, 3),
            "critic_out": (into, 1),
            "dc_down": (out, 2 ** (ratio % 3) * out),
            "dc_up": (2 ** (ratio % 2) * out, out),
            "dc_project_out": (ratio * out, out),
            "dc_project_in": (into, ratio * into),
        }.get(kind, (into, out))
        if kind == "critic_in":
            step, small = 2, (size[0] // 2, *small[1:])
        sizes = {"before": small, "after": size} if kind == "dc_up" else {"before": size, "after": size}
        if kind in ("dc_down", "critic_in", "critic_layer"):
            sizes = {"before": size, "after": small}
        yield samples, Layer(kind=kind, into=widths[0], out=widths[1], step=step, **sizes)


def run(layer: Layer, samples: int, policy: str) -> Run:
    """Forward and backward pass of a layer."""
    with torch.device("meta"):
        module = BUILDS[layer.kind](layer, samples)
        # A loss computes in float32 whatever it is given.
        module = module if layer.kind in ("absolute", "perceptual") else module.to(torch.bfloat16)
        if layer.kind in BLOCKS:
            TrainedBlocks([module]).recompute(policy)
        free_gradients(module)
        x = torch.empty(samples, layer.into, *layer.before, dtype=torch.bfloat16, requires_grad=True)
        outside = [x, *module.parameters(), *module.buffers()]
        live = Events([*outside, module.clip] if isinstance(module, Loss) else outside)
        with live:
            out = module(x)
            forward, kept = live.events, live.now
            live.events = []
            edge, gradient = get_gradient_edge(out), torch.empty_like(out)
            del out
            torch.autograd.backward([edge], [gradient])
    return Run(kept, forward, live.events)


def trace(kind: str, policy: str = "none") -> Trace:
    """One kind of layer, at all sizes."""
    cases = list(layers(kind))
    runs = [run(layer, samples, policy) for samples, layer in cases]
    sizes = np.array([features(layer, samples) for samples, layer in cases], dtype=float)
    chosen = independent(sizes)
    kept = solved(sizes, chosen, np.array([[found.kept] for found in runs], dtype=float))[0]
    return Trace(kept, *(largest(sizes, chosen, [found[part] for found in runs]) for part in (1, 2)))


def independent(sizes: np.ndarray) -> list[int]:
    """Columns that are no sums of those before them."""
    scaled, chosen = sizes / np.linalg.norm(sizes, axis=0), []
    for column in range(sizes.shape[1]):
        if np.linalg.matrix_rank(scaled[:, [*chosen, column]], tol=1e-6) > len(chosen):
            chosen.append(column)
    return chosen


def solved(sizes: np.ndarray, chosen: Sequence[int], values: np.ndarray) -> list[np.ndarray]:
    """Each column of bytes as bytes per feature.

    Raises:
        ValueError: it is no sum of the features.
    """
    scale = np.linalg.norm(sizes[:, chosen], axis=0)
    found = np.linalg.lstsq(sizes[:, chosen] / scale, values, rcond=None)[0] / scale[:, None]
    vectors = np.zeros((sizes.shape[1], values.shape[1]))
    vectors[chosen] = np.round(found, 4)
    off = np.abs(sizes @ vectors - values).max(axis=0) / values.max(axis=0).clip(min=1)
    if off.max() > ROUNDING:
        raise ValueError(f"bytes after operation {off.argmax()} are no sum of the features: off by {off.max():.1e}")
    return list(vectors.T)


def largest(sizes: np.ndarray, chosen: Sequence[int], runs: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The few events that are the largest at some size."""
    table = np.array(runs, dtype=float)
    found = sorted(set(table.argmax(axis=1)))
    return solved(sizes, chosen, table[:, found])


FILE = Path("api/videotrain_api/cost/traced_autoencoders.py")
HEADER = '''"""Layers of autoencoders in training, traced by `benchmarks/trace_autoencoders.py write`; do not edit."""

from typing import Final, NamedTuple

Vector = tuple[float, ...]
"""Bytes per unit of each of FEATURES."""


class Trace(NamedTuple):
    """Memory of one layer in bfloat16, its input left out. A maximum is the largest of its vectors at any sizes."""

    kept: Vector
    """From its forward to its backward pass, its output with it."""
    forward: tuple[Vector, ...]
    """Most in its forward pass."""
    backward: tuple[Vector, ...]
    """Most in its backward pass. Gradients of weights go as soon as they are there: engines have their own room."""


'''


def traces() -> dict[tuple[str, str], Trace]:
    """Every kind of layer, blocks under every policy."""
    blocks = {(kind, policy): trace(kind, policy) for kind, policy in product(BLOCKS, POLICIES)}
    return blocks | {(kind, "none"): trace(kind) for kind in BUILDS if kind not in BLOCKS}


def text_of(found: Mapping[tuple[str, str], Trace]) -> str:
    lines = ["# fmt: off", "LAYERS: Final = {"]
    lines += [f"    {key!r}: {code(trace)},".replace("'", '"') for key, trace in sorted(found.items())]
    lines += ["}", '"""By kind and policy of recomputation."""', "# fmt: on"]
    return HEADER + "\n".join(lines) + "\n"


def code(trace: Trace) -> str:
    def vector(values: np.ndarray) -> str:
        return "(" + ", ".join(f"{value + 0:g}" for value in values) + ")"

    def vectors(many: Sequence[np.ndarray]) -> str:
        return "(" + "".join(f"\n        {vector(values)}," for values in many) + "\n    )"

    return f"Trace(\n    {vector(trace.kept)},\n    {vectors(trace.forward)},\n    {vectors(trace.backward)},\n)"


def stale(found: Mapping[tuple[str, str], Trace]) -> list[str]:
    """Names of traces that the file tells otherwise."""
    from videotrain_api.cost import traced_autoencoders as told

    return [
        str(key)
        for key, trace in found.items()
        if eval(code(trace), {"Trace": told.Trace}) != told.LAYERS.get(key)  # type: ignore[call-overload]
    ]


def main() -> int:
    """Exit code: 1 if the file says otherwise than the networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "check"])
    action, found = parser.parse_args().action, traces()
    if action == "write":
        FILE.write_text(text_of(found), "utf-8")
        return 0
    old = stale(found)
    sys.stderr.writelines(
        f"{FILE}: {name} is not what the networks do; run: python {sys.argv[0]} write\n" for name in old
    )
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
