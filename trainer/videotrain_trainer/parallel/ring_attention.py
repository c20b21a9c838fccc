"""Attention over a sequence of which every rank of a group holds a block (ring attention, arXiv 2310.01889).

A rank keeps its queries and sees the keys and values of one block after another: attention to each is computed apart,
and the parts are merged by their log-sum-exps, in float32. The next block travels while one is computed with. In the
backward pass blocks travel once more, since keeping them would take as much memory as not sharing the sequence, and the
gradients of a block's keys and values go straight back to the rank that holds it, where they are added in float32.

The kernels must tell their log-sum-exp, which torch's public attention does not; its own operators are called.

Shape letters: B batch, S tokens of a block, A attention heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor

aten = torch.ops.aten
Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries, keys and values to the result and its log-sum-exp (B, A, S)."""
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Gradient of the result, queries, keys, values, result and log-sum-exp over all blocks to the three gradients."""


def ring_attention(
    q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor, lengths: Sequence[int], place: int, group: str
) -> Tensor:
    """Attention of this rank's queries to the keys and values of all ranks of a group, without a mask. Collective.

    Args:
        q_BASK: queries of this rank's block.
        k_BASK: its keys.
        v_BASK: its values.
        lengths: tokens of the block of every rank.
        place: of this rank in the group.
        group: name of the process group.
    """
    result: Tensor = _RingAttention.apply(q_BASK, k_BASK, v_BASK, tuple(lengths), place, group)  # type: ignore[no-untyped-call]
    return result


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], place: int, group: str) -> Tensor:
        forward, _ = kernels(q)
        kv, like = torch.stack((k, v)), q.to(_wide(q))
        out, lse = torch.zeros_like(like), torch.full_like(like[..., 0], -torch.inf)
        for block, (key, value) in _blocks(kv, lengths, place, group):
            if lengths[block] and lengths[place]:
                out, lse = merge(out, lse, *forward(q, key, value))
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lengths, ctx.place, ctx.group = lengths, place, group
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        lengths, place, group = ctx.lengths, ctx.place, ctx.group
        _, backward = kernels(q)
        kv, grad = torch.stack((k, v)), grad.contiguous()
        own, grad_q = torch.zeros_like(kv, dtype=_wide(q)), torch.zeros_like(q, dtype=_wide(q))
        for block, (key, value) in _blocks(kv, lengths, place, group):
            found = torch.zeros(2, *key.shape, dtype=own.dtype, device=q.device)
            if lengths[block] and lengths[place]:
                of_q, of_k, of_v = backward(grad, q, key, value, out, lse)
                grad_q, found = grad_q + of_q, torch.stack((of_k, of_v)).to(own.dtype)
            if block != place:
                found = _send(found, own.shape, lengths, place, block - place, group)
            own = own + found
        own = own.to(q.dtype)
        return grad_q.to(q.dtype), own[0], own[1], None, None, None


def _wide(like: Tensor) -> torch.dtype:
    """What parts are added in: float32, or float64 where everything is."""
    return torch.promote_types(like.dtype, torch.float32)


def _blocks(kv: Tensor, lengths: Sequence[int], place: int, group: str) -> Iterator[tuple[int, Tensor]]:
    """Number and keys and values of every block, this rank's first; the next one is on its way while one is used."""
    ranks, current, block = len(lengths), kv, place
    for distance in range(1, ranks + 1):
        ahead, source = kv, (place - distance) % ranks
        if distance < ranks:
            ahead = _send(kv, (*kv.shape[:-2], lengths[source], kv.shape[-1]), lengths, place, distance, group)
        # A block of no tokens is not computed with, and so would never be waited for.
        yield block, wait_tensor(current)  # type: ignore[no-untyped-call]
        current, block = ahead, source


def _send(x: Tensor, shape: Sequence[int], lengths: Sequence[int], place: int, distance: int, group: str) -> Tensor:
    """Give a tensor to the rank `distance` places further on, and take one of `shape` from as many places before."""
    ranks = len(lengths)
    there, received = [0] * ranks, [0] * ranks
    there[(place + distance) % ranks] = x.numel()
    received[(place - distance) % ranks] = torch.Size(shape).numel()
    return all_to_all_single(x.flatten(), received, there, group).view(shape)


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Result and log-sum-exp over two sets of keys from those over each, in the wider type of the first."""
    block_lse = block_lse.to(lse.dtype)
    both = torch.logaddexp(lse, block_lse)
    weights = (lse - both).exp()[..., None], (block_lse - both).exp()[..., None]
    return out * weights[0] + block_out.to(out.dtype) * weights[1], both


def kernels(q: Tensor) -> tuple[Forward, Backward]:
    """The fused kernels for the queries' device and type; plain products where there are none."""
    if q.device.type == "cpu":
        return _cpu_forward, _cpu_backward
    if q.dtype in (torch.bfloat16, torch.float16):
        return _flash_forward, _flash_backward
    return plain_forward, plain_backward


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    found = aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False)
    return found[0], found[1], found[2]


def _flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    found = aten._scaled_dot_product_flash_attention(q, k, v)
    return found[0], found[1]


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # Without dropout the random state is not read; without packed sequences neither are their bounds.
    seed, unused = (torch.empty(n, dtype=torch.uint64, device=q.device) for n in (2, 0))
    found = aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, False, seed, unused
    )
    return found[0], found[1], found[2]


def plain_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """By plain products, with all scores in memory."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that belong to `plain_forward`, of a part of the keys that the result is over."""
    scale = q.shape[-1] ** -0.5
    weights = (q @ k.transpose(-1, -2) * scale - lse[..., None]).exp()
    of_scores = weights * (grad @ v.transpose(-1, -2) - (grad * out).sum(dim=-1, keepdim=True)) * scale
    return of_scores @ k, of_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad
