"""Forward and backward pass of one block of each kind, and of what lies outside of blocks, for one rank of each row.

The model, its recomputation, compilation, attention and exchange are the trainer's own. Where ranks share a sequence,
this one has its tokens outside attention and its heads inside; what would come over the wire is copied on the device
instead, so that packing and unpacking count and waiting does not.

Shape letters: see `videotrain_trainer.networks.mmdit.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replica.measure import Clock
from replica.rows import Row, Sizes
from videotrain_api.resource.stages import ParallelLayout, Recompute
from videotrain_trainer.networks.attention import Attention, attention
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.fp8 import LEAST_CAPABILITY, use_fp8
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel import context
from videotrain_trainer.parallel.activation import transformer_blocks


@dataclass(frozen=True)
class Way:
    """How blocks are run."""

    name: str
    recompute: Recompute
    compiled: bool
    fp8: bool = False


WAYS = (
    Way("compiled selective", "selective", True),
    Way("compiled", "none", True),
    Way("compiled selective fp8", "selective", True, fp8=True),
    Way("eager", "none", False),
    Way("eager full", "full", False),
)
"""The one that the recipe is meant for comes first: time may run out."""


@contextmanager
def local_exchange() -> Iterator[None]:
    """Within it an all-to-all is a copy of the same bytes on the device."""
    with patch.object(context, "all_to_all_single", _copied):
        yield


def _copied(sent: Tensor, _received: list[int], _sent: list[int], _group: str) -> Tensor:
    return sent.clone()


def rank_attention(row: Row) -> Attention:
    """Attention of one rank of the row's group."""
    if row.degree == 1:
        return attention
    return context.SplitAttention(
        attend=attention,
        lengths=(sum(row.own_tokens),) * row.degree,
        place=0,
        head_ranks=row.degree,
        head_group="",
        ring_group="",
    )


def build(sizes: Sizes, device: torch.device, blocks: int | None = None) -> MMDiT:
    """The transformer in bf16; with so many blocks of each kind, if told."""
    spec = sizes.model
    if blocks is not None:
        spec = spec.model_copy(update={"double_blocks": blocks, "single_blocks": blocks})
    torch.manual_seed(0)
    with torch.device(device):
        return build_transformer(spec, sizes.autoencoder, sizes.text).bfloat16()


def inputs(model: MMDiT, row: Row, device: torch.device) -> dict[str, Tensor]:
    """Random arguments of the model for this rank's tokens."""
    config, (image, text) = model.config, row.own_tokens

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    given = {
        "img_BNI": draw(row.samples, image, config.in_channels),
        "img_ids_BN3": torch.randint(0, 64, (row.samples, image, 3), device=device).float(),
        "txt_BLD": draw(row.samples, text, config.context_dim),
        "txt_ids_BL3": torch.zeros(row.samples, text, 3, device=device),
        "timesteps_B": torch.rand(row.samples, device=device),
        "pooled_BP": draw(row.samples, config.pooled_dim),
    }
    if config.cond_embed:
        given["cond_BNE"] = draw(row.samples, image, config.cond_features)
    return given


def time_blocks(
    sizes: Sizes, device: torch.device, clock: Clock, ways: Sequence[Way], over: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Milliseconds of a block by way, row and kind; an error where one does not fit."""
    for way in ways:
        model = build(sizes, device, blocks=1)
        if way.fp8:
            use_fp8(model)
        transformer_blocks(model, ParallelLayout(), compiled=way.compiled).recompute(way.recompute)
        for row in sizes.rows:
            for kind, block in (("double", model.double_blocks[0]), ("single", model.single_blocks[0])):
                if over():
                    return
                about = {"way": way.name, "row": row.name, "kind": kind}
                try:
                    yield about | clock(_pass(block, kind, sizes, row, device))
                except torch.OutOfMemoryError as error:
                    yield about | {"error": str(error)[:120]}


class _Pass:
    """Forward and backward pass of a block."""

    def __init__(self, block: nn.Module, streams: Sequence[Tensor], others: Sequence[Any]) -> None:
        self._block, self._streams, self._others = block, streams, others
        self._gradients = [torch.randn_like(stream) for stream in streams]

    def __call__(self) -> None:
        out = self._block(*self._streams, *self._others)
        torch.autograd.backward(out if isinstance(out, tuple) else (out,), self._gradients)
        self._block.zero_grad()
        for tensor in (*self._streams, self._others[0]):
            tensor.grad = None


def _pass(block: nn.Module, kind: str, sizes: Sizes, row: Row, device: torch.device) -> _Pass:
    width, heads = sizes.shape.hidden, sizes.shape.heads
    image, text = row.own_tokens

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_()

    lengths = (image, text) if kind == "double" else (image + text,)
    streams = [draw(row.samples, length, width) for length in lengths]
    angles = torch.rand(row.samples, 1, image + text, width // heads // 2, device=device)
    return _Pass(block, streams, (draw(row.samples, width), (angles.cos(), angles.sin()), rank_attention(row)))


def time_edges(sizes: Sizes, device: torch.device, clock: Clock) -> Iterator[dict[str, Any]]:
    """Milliseconds of a model without blocks: embedders, rotary tables, last layer and loss."""
    model = build(sizes, device, blocks=0)
    for row in sizes.rows:
        given = inputs(model, row, device)
        target_BNI = torch.randn_like(given["img_BNI"])

        def work(given: dict[str, Tensor] = given, target_BNI: Tensor = target_BNI) -> None:
            F.mse_loss(model(**given).float(), target_BNI).backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

        yield {"row": row.name, **clock(work)}


def chosen_ways(device: torch.device, tiny: bool) -> tuple[Way, ...]:
    """All but FP8 on a GPU without it; two where only the form counts."""
    if tiny:
        return tuple(way for way in WAYS if way.name in ("compiled selective", "eager full"))
    has_fp8 = torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    return tuple(way for way in WAYS if has_fp8 or not way.fp8)
