"""All blocks of the model with one rank's eighth of the optimizer: the check of the sum of blocks, and the memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from replica.blocks import WAYS, build, inputs, rank_attention
from replica.measure import Clock, forget_peak, peak_gigabytes
from replica.rows import Row, Sizes
from videotrain_api.generate.speed import GPUS
from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.activation import transformer_blocks


class Shard:
    """A rank's float32 part of weights, gradients and moments; what others would get is dropped as it comes.

    Each gradient is gone as soon as the backward pass has made it, as if it had been reduced to its owners.
    """

    def __init__(self, model: MMDiT, device: torch.device) -> None:
        lengths = [math.ceil(parameter.numel() / GPUS) for parameter in model.parameters()]
        self.master = torch.zeros(sum(lengths), device=device, requires_grad=True)
        self.gradient = torch.zeros_like(self.master)
        self.master.grad = self.gradient
        self._optimizer = torch.optim.AdamW([self.master], lr=1e-5, fused=True)
        place = 0
        for parameter, length in zip(model.parameters(), lengths, strict=True):
            hook = self._taker(place, length)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            place += length

    def _taker(self, place: int, length: int) -> Any:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.gradient[place : place + length] += parameter.grad.reshape(-1)[:length]
            parameter.grad = None

        return take

    def update(self) -> None:
        """Clip, step and forget the gradients."""
        torch.nn.utils.clip_grad_norm_([self.master], 1.0)
        self._optimizer.step()
        self.gradient.zero_()


def time_whole(sizes: Sizes, row: Row, device: torch.device, clock: Clock) -> dict[str, Any]:
    """A micro-batch and an update of one rank, and the most memory that both took."""
    way = WAYS[0]
    model = build(sizes, device)
    transformer_blocks(model, ParallelLayout(), compiled=way.compiled).recompute(way.recompute)
    shard, given = Shard(model, device), inputs(model, row, device)
    target_BNI, attend = torch.randn_like(given["img_BNI"]), rank_attention(row)
    forget_peak(device)

    def micro_batch() -> None:
        F.mse_loss(model(**given, attend=attend).float(), target_BNI).backward()  # type: ignore[no-untyped-call]

    forward_and_backward = clock(micro_batch)
    return {
        "row": row.name,
        "way": way.name,
        "samples": row.samples,
        "degree": row.degree,
        "micro_batch": forward_and_backward,
        "update": clock(shard.update),
        "peak_gb": peak_gigabytes(device),
    }
