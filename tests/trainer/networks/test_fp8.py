"""FP8 products: how far they may be off, which layers they are for, and that they train like bf16."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.fp8 import LEAST_ROWS, check_device, rowwise, rowwise_product, use_fp8
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.lora.layers import LoraConfig, adapted, inject, merge
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.activation import transformer_blocks

pytestmark = pytest.mark.numeric

CONFIG = MMDiTConfig(
    in_channels=8,
    context_dim=16,
    pooled_dim=16,
    hidden_size=32,
    num_heads=2,
    double_blocks=1,
    single_blocks=1,
    mlp_ratio=2.0,
    rope_axes=(4, 6, 6),
    patch_size=1,
    cond_embed=False,
    guidance_embed=False,
)
STREAM = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.0", "mlp.2")
LARGE = {
    *(f"double_blocks.0.{stream}_{layer}" for stream in ("img", "txt") for layer in STREAM),
    *(f"single_blocks.0.{layer}" for layer in ("q_proj", "k_proj", "v_mlp", "linear2")),
}


def model(config=CONFIG):
    built = MMDiT(config)
    initialize(built, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # gates and the last layer start at zero, which would hide everything
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return built.bfloat16()


def inputs(batch=2, image=12, text=4):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    positions = torch.zeros(batch, image, 3)
    positions[..., 2] = torch.arange(image)
    times = torch.rand(batch, generator=generator)
    return draw(batch, image, 8), positions, draw(batch, text, 16), torch.zeros(batch, text, 3), times, draw(batch, 16)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function.overloadpacket).removeprefix("aten.")] += 1
        return function(*args, **(kwargs or {}))


def random(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)


def test_a_product_is_off_by_no_more_than_the_roundings_of_its_factors():
    a, b = random(96, 64, 1), random(48, 64, 2)
    exact, found = a.double() @ b.double().t(), rowwise_product(a, b).double()
    # Each value is rounded to 4 significant bits, or in the smallest 2^-9 th part of its row to a fixed step.
    relative = 2**-4 + 2**-4 + 2**-8
    step = (a.abs().amax(1, keepdim=True) / 448 * 2**-10).double()
    other = (b.abs().amax(1, keepdim=True) / 448 * 2**-10).double()
    bound = relative * (a.double().abs() @ b.double().abs().t())
    bound += step * b.double().abs().sum(1) + a.double().abs().sum(1, keepdim=True) * other.t()
    bound += 2**-8 * exact.abs()  # the result is bf16
    assert ((found - exact).abs() <= bound).all()
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_a_large_row_costs_the_others_nothing():
    a, b = random(32, 32, 1), random(16, 32, 2)
    large = a.clone()
    large[7] *= 3e4
    others = torch.arange(32) != 7
    assert torch.equal(rowwise_product(large, b)[others], rowwise_product(a, b)[others])


def test_a_row_of_zeros_gives_zeros():
    a = random(16, 32, 1)
    a[3] = 0
    values, scale = rowwise(a)
    assert torch.isfinite(scale).all()
    assert not values[3].float().any()
    assert not rowwise_product(a, random(16, 32, 2))[3].any()


def test_the_large_layers_of_the_blocks_multiply_in_fp8_and_keep_their_names():
    plain, built = model(), model()
    assert set(use_fp8(built)) == LARGE
    assert list(built.state_dict()) == list(plain.state_dict())
    assert [p.shape for p in built.parameters()] == [p.shape for p in plain.parameters()]


def test_fused_layers_do_too():
    built = model(replace(CONFIG, fused_qkv=True, rope_layout="interleaved"))
    found = set(use_fp8(built))
    assert {"double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.qkv", "single_blocks.0.linear1"} <= found
    assert not any("mod" in name for name in found)


def test_streams_of_few_rows_multiply_as_they_are():
    plain, built = model(), model()
    use_fp8(built)
    few, many = inputs(), inputs(batch=2, image=LEAST_ROWS // 2)
    with torch.no_grad():
        assert torch.equal(built(*few), plain(*few))
        with Operations() as found:
            out = built(*many)
        # The image stream and the joint one; the text stream has 8 rows.
        assert found.counts["_scaled_mm"] == len(STREAM) + 4
        assert not torch.equal(out, plain(*many))


def gradients(built, given):
    built.zero_grad()
    loss = built(*given).float().square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad.float() for name, p in built.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_bf16_but_for_roundings():
    plain, built = model(), model()
    use_fp8(built, least_rows=0)
    (loss, exact), (near, found) = gradients(plain, inputs()), gradients(built, inputs())
    assert abs(near - loss) < 0.02 * loss
    for name, gradient in exact.items():
        assert F.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0) > 0.98, name


def test_a_weights_gradient_is_a_bf16_product():
    layer = model()
    use_fp8(layer, least_rows=0)
    linear = layer.single_blocks[0].linear2
    x, gradient = random(40, linear.in_features, 1).requires_grad_(), random(40, linear.out_features, 2)
    linear(x).backward(gradient)
    assert torch.equal(linear.weight.grad, gradient.t() @ x.detach())
    assert torch.equal(x.grad, rowwise_product(gradient, linear.weight.detach().t()))


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_products_are_kept_where_products_are_kept(policy):
    def backward(built, policy):
        transformer_blocks(built, ParallelLayout()).recompute(policy)
        loss = built(*inputs()).float().square().mean()
        with Operations() as found:
            loss.backward()
        return found.counts, {name: p.grad for name, p in built.named_parameters()}

    first, second = model(), model()
    use_fp8(first, least_rows=0)
    use_fp8(second, least_rows=0)
    (plain, exact), (counts, found) = backward(first, "none"), backward(second, policy)
    assert all(torch.equal(exact[name], found[name]) for name in exact)
    again = counts["_scaled_mm"] - plain["_scaled_mm"]
    assert again == (len(LARGE) if policy == "full" else 0)


def test_a_compiled_block_is_one_graph_with_the_same_values():
    built = model()
    use_fp8(built, least_rows=8)
    block, graphs = built.single_blocks[0], []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, backend=backend, dynamic=True, fullgraph=True)
    for tokens in (18, 27, 44):  # unlike any width, or they would be taken to be one
        x, vec = random(2 * tokens, 32, 1).reshape(2, tokens, 32), random(2, 32, 2)
        rope = tuple(torch.randn(2, 1, tokens, 8) for _ in range(2))
        with torch.no_grad():
            # Bit by bit on any CPU: the captured graph is run as it is, operation by operation.
            torch.testing.assert_close(compiled(x, vec, rope), block(x, vec, rope), rtol=0, atol=0)
    assert len(graphs) == 1


def test_an_adapter_trains_over_frozen_products_and_is_merged_as_ever():
    plain, built = model(), model()
    config = LoraConfig(rank=4, alpha=4.0, targets=("q_proj", "linear2"))
    for one in (plain, built):
        inject(one, config)
        for layer in adapted(one).values():
            for seed, part in enumerate((layer.lora_A, layer.lora_B)):
                part.weight.data = random(*part.weight.shape, seed)
    assert set(use_fp8(built, least_rows=0)) == LARGE
    loss = built(*inputs()).float().square().mean()
    with Operations() as counted:
        loss.backward()
    exact = gradients(plain, inputs())[1]
    found = {name: p.grad.float() for name, p in built.named_parameters() if p.grad is not None}
    assert found.keys() == exact.keys() and all(".lora_" in name for name in found)
    for name in found:
        assert F.cosine_similarity(found[name].flatten(), exact[name].flatten(), dim=0) > 0.95, name
    assert counted.counts["mm"] <= 4 * len(adapted(built)) + 4, counted.counts  # none for a frozen weight's gradient
    merge(plain)
    merge(built)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), built.parameters(), strict=True))


def test_widths_that_are_no_multiples_of_16_are_refused():
    built = model(replace(CONFIG, hidden_size=24, rope_axes=(4, 4, 4)))
    with pytest.raises(ConfigError, match=r"double_blocks.0.img_attn.q_proj has 24 x 24 features; .*multiples of 16"):
        use_fp8(built)


@pytest.mark.parametrize(
    ("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False), ((10, 0), False)]
)
def test_a_gpu_without_fp8_is_refused(monkeypatch, capability, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    check_device(torch.device("cpu"))
    if capability != (8, 0):
        check_device(torch.device("cuda", 0))
        return
    with pytest.raises(ConfigError, match=r"train.fp8: true, but NVIDIA A100.* 8.0 and no FP8; allowed: 8.9 or newer"):
        check_device(torch.device("cuda", 0))
