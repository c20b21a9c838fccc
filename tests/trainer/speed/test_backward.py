"""What a compiled block keeps for its backward pass, and what runs again in it, with real tensors on the CPU."""

from collections import Counter

import pytest
import torch
import torch._dynamo
from support.at_length import at_length
from support.speed_counts import check
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import DoubleBlock, SingleBlock
from videotrain_trainer.parallel import activation

pytestmark = pytest.mark.numeric

WIDTH, IMAGE, TEXT = 256, 480, 32
CONFIG = MMDiTConfig(
    in_channels=16,
    context_dim=32,
    pooled_dim=16,
    hidden_size=WIDTH,
    num_heads=2,
    double_blocks=1,
    single_blocks=1,
    mlp_ratio=4.0,
    rope_axes=(16, 56, 56),
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
KINDS = {"double": DoubleBlock, "single": SingleBlock}
MOST = {"double": 11.1, "single": 10.1}
"""Units (hidden size x 2 bytes) per token that a block with selective recompute may keep."""
ROUNDING = {"double": 2**-7, "single": 2**-7}
"""Largest difference from eager gradients relative to the largest: a rounding of bfloat16 or two, since compiled code
rounds between fewer operations."""


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def partitioned(monkeypatch):
    monkeypatch.setattr(activation, "BACKEND", "aot_eager_decomp_partition")
    activation.compiled.cache_clear()
    torch._dynamo.reset()
    yield
    activation.compiled.cache_clear()
    torch._dynamo.reset()


def run(kind, forward):
    """Units kept per token, operations of the backward pass, gradients."""
    torch.manual_seed(0)
    block = KINDS[kind](CONFIG).bfloat16()
    generator = torch.Generator().manual_seed(1)

    def new(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=generator).to(dtype)

    tokens = IMAGE + TEXT
    vec, rope = new(1, WIDTH), (new(1, 1, tokens, 64, dtype=torch.float32), new(1, 1, tokens, 64, dtype=torch.float32))
    streams = [new(1, n, WIDTH).requires_grad_() for n in ((IMAGE, TEXT) if kind == "double" else (tokens,))]

    def key(tensor):
        return tensor.untyped_storage()._cdata

    known, kept, alive = {key(p) for p in block.parameters()} | {key(t) for t in rope}, {}, []

    def pack(tensor):
        alive.append(tensor)  # or another tensor may get the same storage
        if key(tensor) not in known:
            kept[key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward(block, *streams, vec, rope)
    outs = out if isinstance(out, tuple) else (out,)
    with Operations() as found:
        torch.autograd.backward(outs, [torch.ones_like(o) for o in outs])
    gradients = [x.grad for x in streams] + [p.grad for p in block.parameters()]
    counted = {
        "kept": round(sum(kept.values()) / (tokens * WIDTH * 2), 1),
        "products in backward": sum(found.counts[name] for name in ("mm", "addmm", "bmm")),
        "attention forwards in backward": found.counts["_scaled_dot_product_flash_attention_for_cpu"],
    }
    return counted, gradients


def worst(gradients, exact):
    pairs = [(a, b) for a, b in zip(gradients, exact, strict=True) if a is not None]
    return max(float((a - b).float().abs().max() / b.float().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("kind", [at_length("double"), "single"])
def test_selective_recompute_keeps_little_and_repeats_nothing_dear(kind):
    _, eager = run(kind, activation.FORWARDS["none"])
    plain, compiled = run(kind, activation.compiled("none"))
    selective, again = run(kind, activation.compiled("selective"))
    assert worst(compiled, eager) < ROUNDING[kind]
    assert worst(again, eager) < ROUNDING[kind]
    assert selective["kept"] <= MOST[kind]
    assert selective["products in backward"] == plain["products in backward"]
    assert selective["attention forwards in backward"] == 0
    check(f"compiled {kind} block", {"none": plain, "selective": selective})
