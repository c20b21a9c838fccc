"""Parts of attention are merged to the whole, by every kernel that tells its log-sum-exp."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from videotrain_trainer.networks.attention import attention
from videotrain_trainer.parallel.ring_attention import kernels, merge, plain_backward, plain_forward

pytestmark = pytest.mark.numeric

EXACT = 1e-13
"""Relative, and absolute beside numbers of about one: of float64 sums of some dozen products in another order, each
rounded by 1e-16, on any CPU and by any number of threads."""


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return [torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for length in (5, 11, 11)]


def of_kind(kind, like):
    return (plain_forward, plain_backward) if kind == "plain" else kernels(like)


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_attention_to_two_blocks_merges_to_attention_to_both(qkv, kind):
    q, k, v = qkv
    expected = attention(q, k, v)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    forward, backward = of_kind(kind, q)
    q, k, v = (x.detach() for x in qkv)
    blocks = list(zip(k.split((4, 7), dim=2), v.split((4, 7), dim=2), strict=True))
    out, lse = torch.zeros_like(q), torch.full_like(q[..., 0], -torch.inf)
    for key, value in blocks:
        out, lse = merge(out, lse, *forward(q, key, value))
    torch.testing.assert_close(out, expected.detach(), rtol=EXACT, atol=EXACT)
    found = [backward(gradient, q, key, value, out, lse) for key, value in blocks]
    torch.testing.assert_close(sum(of_q for of_q, _, _ in found), qkv[0].grad, rtol=EXACT, atol=EXACT)
    for place in (1, 2):
        joined = torch.cat([parts[place] for parts in found], dim=2)
        torch.testing.assert_close(joined, qkv[place].grad, rtol=EXACT, atol=EXACT)


def test_scores_that_differ_by_hundreds_are_merged_without_overflow():
    out, lse = merge(torch.ones(1, 2), torch.tensor([300.0]), torch.full((1, 2), 5.0), torch.tensor([900.0]))
    assert (out.tolist(), lse.tolist()) == ([[5.0, 5.0]], [900.0])


def test_on_a_gpu_the_kernels_are_called_as_they_are_declared():
    with FakeTensorMode():
        for dtype in (torch.bfloat16, torch.float32):
            q, k, v = (torch.empty(1, 3, length, 128, dtype=dtype, device="cuda") for length in (64, 96, 96))
            forward, backward = kernels(q)
            out, lse = forward(q, k, v)
            assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:-1], torch.float32)
            found = backward(torch.empty_like(out), q, k, v, out, lse)
            assert [x.shape for x in found] == [q.shape, k.shape, v.shape]
