"""A frozen base in 8 bits: how far it is off, that nothing but roundings differs, and what is held."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.model_fixtures import forward, transformer
from support.numerics import apart, rounding
from torch import nn

from videotrain_api.resource.stages import LoraAdapter, ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.fp8 import check_device
from videotrain_trainer.networks.lora.base import QuantizedLoraLinear, adapt, block_layers, quantize_base
from videotrain_trainer.networks.lora.layers import adapted, initialize_adapter, merge
from videotrain_trainer.networks.quantized import SCALE, STORED, QuantizedLinear, rowwise
from videotrain_trainer.networks.weights import load_frozen
from videotrain_trainer.networks.weights.fragments import Computed
from videotrain_trainer.parallel.activation import transformer_blocks

pytestmark = pytest.mark.numeric

KINDS = ("int8", "fp8")
SPEC = LoraAdapter(rank=4, alpha=8.0)


def random(*shape, seed=1, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(kind, dtype=torch.bfloat16, rows=48, features=96):
    """A layer in 8 bits, one row of which has an outlier and one is zero, and its weight as it was."""
    layer = nn.Linear(features, rows, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(random(rows, features, dtype=dtype))
    layer.weight[3, 5], layer.weight[4] = 50.0, 0.0
    weight = layer.weight.clone()
    layer.__class__ = QuantizedLinear
    layer.quantization = kind
    layer.hold(weight, dtype)
    return layer, weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_off_by_no_more_than_its_roundings(kind, dtype):
    layer, weight = linear(kind, dtype)
    digits = 2**-8 if dtype is torch.bfloat16 else 2**-23
    largest = weight.double().abs().amax(1, keepdim=True)
    # int8 has fixed steps of a 127th of the row's largest value, FP8 four digits, and fixed steps near zero.
    if kind == "int8":
        bound = (largest / 127 / 2).expand_as(weight)
    else:
        bound = 2**-4 * weight.double().abs() + largest / 448 * 2**-10
    # The scale is rounded, which moves steps and the largest value by as much, and so is the product.
    bound = bound * (1 + 4 * digits) + 2 * digits * weight.double().abs()
    found = layer.widened().double()
    assert ((found - weight.double()).abs() <= bound).all()
    assert not found[4].any() and torch.isfinite(layer.weight_scale).all()
    assert (found - weight.double()).abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_outlier_costs_other_rows_nothing(kind):
    weight = random(32, 64)
    large = weight.clone()
    large[7] *= 3e4
    others = torch.arange(32) != 7
    for one, other in zip(rowwise(large, STORED[kind]), rowwise(weight, STORED[kind]), strict=True):
        assert torch.equal(one[others].float(), other[others].float())


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_is_off_by_no_more_than_the_weights_roundings(kind):
    layer, weight = linear(kind)
    x = random(40, 96, seed=2)
    exact = x.double() @ weight.double().t() + layer.bias.double()
    largest = weight.double().abs().amax(1, keepdim=True)
    relative, step = (2**-7, 1 / 254) if kind == "int8" else (2**-4 + 2**-7, 2**-10 / 448)
    bound = x.double().abs() @ (relative * weight.double().abs() + 1.02 * step * largest).t()
    bound += 2**-8 * exact.abs() + 2**-14 * (x.double().abs() @ weight.double().abs().t())  # bf16, summed in float32
    assert ((layer(x).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 7, 96)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_one_with_the_widened_weight_does(kind, shape):
    layer, _ = linear(kind)
    x, other = random(*shape, seed=2).requires_grad_(), random(*shape, seed=2).requires_grad_()
    out, expected = layer(x), F.linear(other, layer.widened(), layer.bias)
    gradient = random(*out.shape, seed=3)
    out.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(out, expected)
    assert x.grad.shape == other.grad.shape and apart(x.grad, other.grad) <= 4 * rounding(other.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_the_weight_in_8_bits(kind):
    layer, _ = linear(kind)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(random(5, 96).requires_grad_())
    assert {id(tensor.untyped_storage()) for tensor in kept}
    assert sum(t.numel() * t.element_size() for t in kept) == 48 * 96 + 2 * 48, "the weight and its scales"


def model(fixture, dtype=torch.float32, kind="none"):
    built = transformer(fixture("mmdit_i2v")).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(built.parameters()):
            parameter.add_(0.02 * random(*parameter.shape, seed=number, dtype=dtype))
    adapt(built, SPEC.model_copy(update={"quantize_base": kind}))
    initialize_adapter(built, 1)
    with torch.no_grad():
        for number, layer in enumerate(adapted(built).values()):
            layer.lora_B.weight.copy_(0.05 * random(*layer.lora_B.weight.shape, seed=number))
    return built


def widened(built):
    """The same model in the data type of training, with the weights that it multiplies with."""
    plain = copy.deepcopy(built)
    held = {n: part for n, part in plain.named_modules() if isinstance(part, QuantizedLinear)}
    for layer in held.values():
        weight = layer.widened()
        del layer.weight_scale
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.__class__ = type(layer).__mro__[1] if isinstance(layer, QuantizedLoraLinear) else nn.Linear
    return plain


def trained(built, found, policy="none"):
    transformer_blocks(built, ParallelLayout()).recompute(policy)
    loss = forward(built, found).float().square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_the_blocks_is_held_in_8_bits_and_nothing_else(fixture, kind):
    built = model(fixture, kind=kind)
    held = {name for name, part in built.named_modules() if isinstance(part, QuantizedLinear)}
    plain = transformer(fixture("mmdit_i2v"))
    assert held == {name for name, _ in block_layers(plain)}
    assert {name.split(".")[0] for name in held} == {"double_blocks", "single_blocks"}
    assert "double_blocks.0.img_mod.lin" in held
    eight = {name for name, p in built.named_parameters() if p.dtype == torch.int8}
    assert eight == {f"{name}.weight" for name in held}
    names = {n for n, _ in built.named_parameters()} - {f"{name}.{SCALE}" for name in held}
    assert {n for n in names if ".lora_" not in n} == set(plain.state_dict())
    assert all(p.requires_grad == (".lora_" in name) for name, p in built.named_parameters())


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_an_adapter_are_those_over_the_widened_base(fixture, kind, policy):
    found, built = fixture("mmdit_i2v"), model(fixture, kind=kind)
    (loss, exact), (near, gradients) = trained(widened(built), found), trained(built, found, policy)
    assert apart(near, loss) <= 4 * rounding(loss)
    assert gradients.keys() == exact.keys() and all(".lora_" in name for name in gradients)
    for name, gradient in gradients.items():
        assert apart(gradient, exact[name]) <= 32 * rounding(exact[name]), name


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("fp8", 0.08)])
def test_a_models_output_is_near_that_of_its_base(fixture, kind, most):
    found = fixture("mmdit_i2v")
    with torch.no_grad():
        plain, near = forward(model(fixture), found), forward(model(fixture, kind=kind), found)
    assert 0 < (near - plain).norm() < most * plain.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_are_loaded_one_by_one_into_8_bits(fixture, kind):
    built = transformer(fixture("mmdit_i2v"))
    state = {name: value.clone() for name, value in built.state_dict().items()}
    source = Computed(lambda name, start, length: state[name].reshape(-1)[start : start + length])
    quantize_base(built.requires_grad_(False), kind)
    with torch.device("meta"):
        empty = copy.deepcopy(transformer(fixture("mmdit_i2v")).to("meta")).requires_grad_(False)
        quantize_base(empty, kind)
    load_frozen(empty, source, torch.device("cpu"), torch.float32)
    assert all(torch.equal(value, empty.state_dict()[name]) for name, value in built.state_dict().items())
    load_frozen(empty, source, torch.device("cpu"), torch.bfloat16)
    types = {p.dtype for name, p in empty.named_parameters()}
    assert types == {torch.int8, torch.bfloat16}


def test_merging_into_8_bits_is_refused(fixture):
    built = model(fixture, kind="int8")
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(ConfigError, match=r"double_blocks.0.* holds its weight in 8 bits.*without lora.quantizeBase"):
        merge(built)
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_block_is_one_graph_with_the_same_values(fixture, kind):
    built = model(fixture, torch.bfloat16, kind)
    block, graphs = built.single_blocks[0], []
    hidden, heads = built.config.hidden_size, built.config.num_heads

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, backend=backend, dynamic=True, fullgraph=True)
    for tokens in (18, 27, 44):  # unlike any width, or they would be taken to be one
        x, vec = random(2, tokens, hidden), random(2, hidden, seed=2)
        rope = tuple(torch.randn(2, 1, tokens, hidden // heads // 2) for _ in range(2))
        with torch.no_grad():  # the graph runs as it was traced: the same kernels in the same order
            torch.testing.assert_close(compiled(x, vec, rope), block(x, vec, rope), rtol=0, atol=0)
    assert len(graphs) == 1


def test_a_gpu_without_fp8_is_refused_and_int8_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(ConfigError, match=r"quantizeBase: fp8, but NVIDIA A100.* or train.lora.quantizeBase: int8"):
        check_device(torch.device("cuda", 0), "train.lora.quantizeBase: fp8", "train.lora.quantizeBase: int8")
