"""Blocks as Inductor compiles them to C++: gradients of every policy, for shapes that were not compiled for.

Minutes of a compiler, so `tox -e compiled` runs it and plain `tox` does not.
"""

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel import activation

CONFIG = MMDiTConfig(
    in_channels=8,
    context_dim=8,
    pooled_dim=8,
    hidden_size=32,
    num_heads=2,
    double_blocks=2,
    single_blocks=2,
    mlp_ratio=2.0,
    rope_axes=(4, 6, 6),
    patch_size=1,
    cond_embed=False,
    guidance_embed=False,
)
SHAPES = ((2, 24, 8), (3, 30, 12))
BOUND = 1e-4
"""Largest difference of a gradient from the eager one, relative to the largest value: float32 sums in another order."""


def gradients(model, batch, image, text):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(*shape, generator=generator)

    model.zero_grad()
    ids = torch.arange(image)[None, :, None].expand(batch, -1, 3).float()
    inputs = (new(batch, image, 8), ids, new(batch, text, 8), torch.zeros(batch, text, 3))
    model(*inputs, torch.rand(batch, generator=generator), new(batch, 8)).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", ["selective", "none", "full"])
def test_compiled_blocks_have_the_gradients_of_eager_ones(policy):
    torch.manual_seed(0)
    model = MMDiT(CONFIG)
    eager = [gradients(model, *shape) for shape in SHAPES]
    torch._dynamo.reset()
    counters.clear()
    activation.transformer_blocks(model, ParallelLayout(), compiled=True).recompute(policy)
    for shape, exact in zip(SHAPES, eager, strict=True):
        found = gradients(model, *shape)
        largest = max(float(gradient.abs().max()) for gradient in exact.values())
        assert max(float((found[n] - exact[n]).abs().max()) for n in exact) < BOUND * largest
    # Two kinds of block; the second shape runs what the first compiled.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
