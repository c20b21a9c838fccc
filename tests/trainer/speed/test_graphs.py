"""How many graphs torch.compile needs for blocks of any shape, and where it breaks them."""

import pytest
import torch
import torch._dynamo
from support.speed_counts import check

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel import activation

CONFIG = MMDiTConfig(
    in_channels=16,
    context_dim=32,
    pooled_dim=16,
    hidden_size=64,
    num_heads=4,
    double_blocks=2,
    single_blocks=2,
    mlp_ratio=4.0,
    rope_axes=(4, 6, 6),
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
SHAPES = ((2, 56, 8), (3, 36, 8), (4, 16, 12), (1, 48, 8), (2, 40, 64), (1, 20, 8), (5, 12, 8))
"""Samples, image and text tokens. Some sums equal the hidden size, which must not make a graph of their own."""


def inputs(batch, image, text):
    def new(*shape):
        return torch.zeros(*shape, dtype=torch.bfloat16)

    return {
        "img_BNI": new(batch, image, 16),
        "img_ids_BN3": torch.zeros(batch, image, 3),
        "txt_BLD": new(batch, text, 32),
        "txt_ids_BL3": torch.zeros(batch, text, 3),
        "timesteps_B": torch.zeros(batch),
        "pooled_BP": new(batch, 16),
        "cond_BNE": new(batch, image, 20),
    }


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that blocks are compiled to; they run as they were traced."""
    found = []

    def backend(graph, _inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(activation, "BACKEND", backend)
    activation.compiled.cache_clear()
    torch._dynamo.reset()
    yield found
    activation.compiled.cache_clear()
    torch._dynamo.reset()


def test_seven_shapes_and_all_blocks_take_at_most_four_graphs(graphs):
    counted = {}
    for policy in ("none", "selective"):
        model = MMDiT(CONFIG).bfloat16()
        activation.transformer_blocks(model, ParallelLayout(), compiled=True).recompute(policy)
        graphs.clear()
        for shape in SHAPES:
            model(**inputs(*shape)).sum().backward()
        counted[policy] = len(graphs)
    assert max(counted.values()) <= 4
    check("graphs over 7 shapes", counted)


def test_nothing_breaks_the_graph_of_the_whole_model():
    torch._dynamo.reset()
    found = torch._dynamo.explain(MMDiT(CONFIG).bfloat16())(**inputs(2, 24, 8))
    check("whole model", {"graphs": found.graph_count, "breaks": found.graph_break_count})
    assert found.graph_break_count == 0
