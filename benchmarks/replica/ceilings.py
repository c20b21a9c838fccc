"""What the device's matrix products and attention reach at the model's real shapes: no block can be faster than that.

Shape letters: M rows, K features in, N features out, B batch, A heads, S tokens, E head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from replica.measure import Clock
from replica.rows import Sizes

ATTENTION_ROWS = ("256px 5-33f", "256px 101-129f", "768px 5-33f", "768px 37-65f", "768px 69-97f", "768px 101-129f")
PRODUCT_ROWS = ("256px 5-33f", "256px 101-129f", "768px 101-129f")
BACKWARD = 2.5
"""Products of a fused attention's backward pass, which computes the scores again, over those of its forward pass."""


def products(sizes: Sizes, clock: Clock) -> Iterator[dict[str, Any]]:
    """TFLOP/s of each layer's product, forward, of the input's gradient and of the weight's."""
    width, mlp = sizes.shape.hidden, sizes.shape.feed_forward
    layers = {"q, k, v, proj": (width, width), "mlp in": (width, mlp), "mlp out": (mlp, width)}
    layers |= {"v and mlp in": (width, width + mlp), "linear2": (width + mlp, width)}
    for row in (row for row in sizes.rows if row.recipe.published.name in PRODUCT_ROWS):
        rows = row.samples * sum(row.own_tokens)
        for layer, (into, out) in layers.items():
            x_MK, w_NK, g_MN = (_random(clock, *shape) for shape in ((rows, into), (out, into), (rows, out)))
            passes = {
                "forward": lambda x=x_MK, w=w_NK: x @ w.t(),
                "input gradient": lambda g=g_MN, w=w_NK: g @ w,
                "weight gradient": lambda g=g_MN, x=x_MK: g.t() @ x,
            }
            for name, work in passes.items():
                took = clock(work)
                flops = 2 * rows * into * out
                yield {"layer": layer, "pass": name, "m": rows, "k": into, "n": out, **_rate(flops, took)}


def attention(sizes: Sizes, clock: Clock) -> Iterator[dict[str, Any]]:
    """TFLOP/s of torch's fused attentions, forward and backward; an error where one does not run."""
    backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)
    heads, head_dim = sizes.shape.heads, sizes.shape.hidden // sizes.shape.heads
    for row in (row for row in sizes.rows if row.recipe.published.name in ATTENTION_ROWS):
        shape = (row.samples, heads // row.degree, row.tokens, head_dim)
        for backend in backends:
            about = {"row": row.name, "backend": backend.name, "batch": shape[0], "heads": shape[1], "tokens": shape[2]}
            try:
                yield about | _attention(backend, shape, clock)
            except RuntimeError as error:  # this backend is not built for the device
                yield about | {"error": str(error)[:200]}


def _attention(backend: SDPBackend, shape: tuple[int, int, int, int], clock: Clock) -> dict[str, Any]:
    batch, heads, tokens, head_dim = shape
    q, k, v = (_random(clock, *shape).requires_grad_() for _ in range(3))
    with sdpa_kernel(backend):
        gradient = _random(clock, *shape)

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

        took = clock(forward)
        both = clock(lambda: torch.autograd.grad(forward(), (q, k, v), gradient))
    flops = 4 * batch * heads * tokens**2 * head_dim
    backward = max(both["ms"] - took["ms"], 1e-6)
    return {
        "forward_ms": took["ms"],
        "backward_ms": backward,
        "forward_tflops": flops / took["ms"] / 1e9,
        "backward_tflops": BACKWARD * flops / backward / 1e9,
    }


def _random(clock: Clock, *shape: int) -> Tensor:
    return torch.randn(shape, device=clock.device, dtype=torch.bfloat16)


def _rate(flops: int, took: dict[str, float]) -> dict[str, float]:
    return {"tflops": flops / took["ms"] / 1e9, **took}
