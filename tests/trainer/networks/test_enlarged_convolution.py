"""A convolution of an enlargement without the enlargement."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import assert_near
from torch import nn

from videotrain_trainer.networks.common import convolve_enlarged

pytestmark = pytest.mark.numeric

SIZES = [
    ((1, 2, 2), 32, (8, 16, 16)),
    ((1, 2, 2), 4, (1, 8, 10)),
    ((2, 2, 2), 8, (4, 8, 6)),
    ((2, 2, 2), 4, (2, 5, 7)),
    ((2, 2, 2), 64, (1, 2, 2)),
]


def results(work, conv, clip):
    """Values, and gradients of the input, the weights and the bias under uneven weights of the output."""
    given = clip.clone().requires_grad_()
    conv.zero_grad()
    out = work(conv, given)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return [value.clone() for value in (out.detach(), given.grad, conv.weight.grad, conv.bias.grad)]


@pytest.mark.parametrize(("factor", "channels", "size"), SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_those_of_the_plain_way(factor, channels, size, batch):
    torch.manual_seed(0)
    conv, clip = nn.Conv3d(channels, 6, 3, padding=1), torch.randn(batch, channels, *size)

    def plain(layer, x):
        return layer(F.interpolate(x, scale_factor=[float(n) for n in factor], mode="nearest"))

    found = results(lambda layer, x: convolve_enlarged(layer, x, factor), conv, clip)
    exact = results(plain, conv.double(), clip.double())
    # The longest sum is that of the bias, over all positions.
    roundings = math.sqrt(found[0].numel())
    for mine, wanted in zip(found, exact, strict=True):
        assert_near(mine, wanted, roundings)


def test_many_positions_are_never_enlarged(monkeypatch):
    conv = nn.Conv3d(8, 4, 3, padding=1)
    monkeypatch.setattr(F, "interpolate", lambda *_, **__: pytest.fail("an enlargement was made"))
    assert convolve_enlarged(conv, torch.zeros(1, 8, 4, 8, 8), (2, 2, 2)).shape == (1, 4, 8, 16, 16)
