"""The table of `videotrain plan` is what the model does, and its formula tells the peak of whole models."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import trace_memory
from autoencoder_memory import LiveBytes
from trace_memory import fused_attention

from videotrain_api.cost import flops, traced
from videotrain_api.cost.flops import MmditShape
from videotrain_api.cost.memory import RESERVE, MicroBatch, drawing_memory, gpu_memory
from videotrain_api.cost.model_state import ModelState, Parameters, Sharding, model_state
from videotrain_trainer.networks import quantized
from videotrain_trainer.networks.lora.base import quantize_base
from videotrain_trainer.networks.lora.layers import LoraConfig, inject
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.activation import TrainedBlocks

NOTHING = ModelState(0, 0, 0, 0, 0)
PATCH, CONDITION, CONTEXT, POOLED = 64, 68, 4096, 768


def test_the_table_is_what_the_model_does(pretended_ranks):
    blocks, shared = trace_memory.traces("eager"), trace_memory.shared_traces()
    assert trace_memory.stale(trace_memory.trace_edges(), {**blocks, **shared}) == []
    assert set(traced.BLOCKS) == {(kernels, *rest) for kernels, (_, *rest) in product(("eager", "compiled"), blocks)}
    assert set(traced.SHARED) == set(shared)


def test_a_changed_block_is_noticed(monkeypatch):
    blocks = trace_memory.traces("eager")
    kept = blocks["eager", "full", "single"].kept + 1
    blocks["eager", "full", "single"] = blocks["eager", "full", "single"]._replace(kept=kept)
    assert trace_memory.stale(trace_memory.trace_edges(), blocks) == [str(("eager", "full", "single"))]


@pytest.fixture
def pretended_ranks():
    """The process group that `shared_attention` makes goes after the test."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def shape_of(hidden: int, heads: int, ratio: float, double: int, single: int) -> MmditShape:
    return MmditShape(
        hidden=hidden,
        heads=heads,
        feed_forward=int(hidden * ratio),
        double_blocks=double,
        single_blocks=single,
        patch_channels=PATCH,
        condition_channels=CONDITION,
        guidance=False,
        context=CONTEXT,
        pooled=POOLED,
    )


def traced_peak(
    shape: MmditShape,
    batch: MicroBatch,
    attend=fused_attention,
    adapter: LoraConfig | None = None,
    base: str | None = None,
) -> int:
    """Bytes beside the weights, counted over a whole step of the whole model."""
    config = replace(
        trace_memory.config(shape.double_blocks, shape.single_blocks),
        hidden_size=shape.hidden,
        num_heads=shape.heads,
        mlp_ratio=shape.feed_forward / shape.hidden,
        in_channels=PATCH,
        context_dim=CONTEXT,
    )
    double, single = batch.recomputed
    image, text = (batch.samples, batch.image_tokens), (batch.samples, batch.text_tokens)
    with torch.device("meta"), LiveBytes() as live:
        model = MMDiT(config)
        if adapter:
            inject(model, adapter)
        model.to(torch.bfloat16)
        if base:
            quantize_base(model, base)
        limited = [*model.double_blocks[:double], *model.single_blocks[:single]]
        TrainedBlocks([*model.double_blocks, *model.single_blocks], limited).recompute(batch.recompute)
        trace_memory.free_gradients(model)

        def loss() -> torch.Tensor:
            given = (torch.empty(*size) for size in ((*image, PATCH), (*image, 3), (*text, CONTEXT), (*text, 3)))
            vectors = torch.empty(batch.samples), torch.empty(batch.samples, POOLED)
            out = model(*given, *vectors, torch.empty(*image, CONDITION), attend=attend)
            return F.mse_loss(out.float(), torch.empty(*image, PATCH))

        held = live.now
        live.peak = held
        loss().backward()
    return live.peak - held


def batch_of(samples: int, image: int, text: int, policy: str, double: int | None = None) -> MicroBatch:
    counts = {"samples": samples, "image_tokens": image, "text_tokens": text}
    return MicroBatch(**counts, recompute=policy, recomputed=(double, None), compiled=False)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        (shape_of(3072, 24, 4.0, 3, 5), batch_of(1, 76_032, 512, "full")),
        (shape_of(3072, 24, 4.0, 3, 5), batch_of(1, 20_736, 512, "selective")),
        (shape_of(3072, 24, 4.0, 2, 4), batch_of(12, 2304, 512, "none")),
        (shape_of(3072, 24, 4.0, 4, 4), batch_of(45, 256, 512, "full", double=1)),
        (shape_of(1024, 8, 2.0, 2, 3), batch_of(5, 3000, 77, "selective")),
        (shape_of(1536, 12, 6.0, 2, 2), batch_of(7, 1000, 1300, "none")),
        (shape_of(2048, 16, 4.0, 0, 3), batch_of(2, 5000, 300, "selective")),
        (shape_of(2048, 16, 4.0, 3, 0), batch_of(2, 5000, 300, "full")),
    ],
)
def test_the_formula_tells_the_peak_of_models_that_it_was_not_taken_from(shape, batch):
    counted = traced_peak(shape, batch)
    told = gpu_memory(shape, NOTHING, batch)
    # Never too little; at most a block's temporaries beside inputs that are gone by then.
    assert counted <= told.total - RESERVE <= 1.05 * counted


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("name", "sharing"), [("heads", {"shares_heads": True}), ("ring3", {"ring_parts": 3}), ("ring5", {"ring_parts": 5})]
)
def test_the_formula_knows_what_ranks_that_share_a_sequence_exchange(pretended_ranks, name, sharing, policy):
    shape, batch = shape_of(1536, 12, 4.0, 2, 3), replace(batch_of(1, 10_000, 128, policy), **sharing)
    attend = trace_memory.shared_attention(name, batch.image_tokens + batch.text_tokens)
    counted = traced_peak(shape, batch, attend)
    # What comes and goes is taken from a ring of three, and a part less as more is kept.
    assert counted <= gpu_memory(shape, NOTHING, batch).total - RESERVE <= 1.08 * counted


@pytest.mark.parametrize(("policy", "counted_as"), [("none", "none"), ("selective", "none"), ("full", "full")])
def test_an_adapter_needs_no_more_than_it_counts_as(policy, counted_as):
    shape = shape_of(1536, 12, 4.0, 2, 3)
    counted = traced_peak(shape, batch_of(1, 10_000, 128, policy), adapter=LoraConfig(16, 16.0))
    assert counted <= gpu_memory(shape, NOTHING, batch_of(1, 10_000, 128, counted_as)).total - RESERVE


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("base", ["int8", "fp8"])
def test_nothing_of_a_widened_base_is_kept(base, policy):
    shape, adapter = shape_of(1536, 12, 4.0, 2, 3), LoraConfig(16, 16.0)
    # So few tokens that one widened weight is more than all that is kept of a block.
    batch = batch_of(1, 100, 28, policy)
    plain = traced_peak(shape, batch, adapter=adapter)
    assert traced_peak(shape, batch, adapter=adapter, base=base) <= plain


@pytest.mark.parametrize("fp8", [False, True])
def test_a_weight_is_widened_without_a_second_copy(fp8):
    with torch.device("meta"), LiveBytes() as live:
        x, bits = torch.empty(7, 96, dtype=torch.bfloat16), torch.empty(64, 96, dtype=torch.int8)
        scale, gradient = torch.empty(64, 1, dtype=torch.bfloat16), torch.empty(7, 64, dtype=torch.bfloat16)
        for run, made in ((quantized.multiplied, 7 * 64), (quantized.multiplied_back, 7 * 96)):
            held = live.now
            live.peak = held
            out = run(x, bits, scale, None, fp8) if made == 7 * 64 else run(gradient, bits, scale, fp8)
            assert live.peak - held == 2 * (64 * 96 + made)
            del out


@pytest.mark.parametrize("base", ["int8", "fp8"])
def test_the_bytes_of_a_base_in_8_bits_are_those_of_the_model(base):
    shape = shape_of(1536, 12, 4.0, 2, 3)
    config = replace(trace_memory.config(2, 3), hidden_size=1536, num_heads=12, mlp_ratio=4.0)
    with torch.device("meta"):
        model = MMDiT(config).to(torch.bfloat16)
        quantize_base(model, base)
    held, found = flops.quantized_base(shape), list(model.named_parameters())
    assert sum(p.numel() for _, p in found if p.dtype == torch.int8) == held.weights
    assert sum(p.numel() for name, p in found if name.endswith(".weight_scale")) == held.rows
    assert max(p.numel() for _, p in found if p.dtype == torch.int8) == held.largest
    parameters = Parameters(trained=0, frozen=0, largest_block=0)
    plain = sum(p.numel() for name, p in found if not name.endswith(".weight_scale"))
    parameters = replace(parameters, frozen=plain, quantized=held.weights, scales=held.rows)
    sharding = Sharding(engine="fsdp2", zero_stage=2, offload="none", ranks=8, float32=False, average=False)
    assert model_state(parameters, sharding).weights == sum(p.numel() * p.element_size() for _, p in found)


def test_the_formula_tells_the_peak_of_drawing_with_a_whole_transformer():
    shape = shape_of(1536, 12, 4.0, 2, 3)
    batch = MicroBatch(samples=3, image_tokens=6000, text_tokens=256, compiled=False)
    config = replace(
        trace_memory.config(2, 3), hidden_size=1536, num_heads=12, mlp_ratio=4.0, in_channels=PATCH, context_dim=CONTEXT
    )
    image, text = (3, 6000), (3, 256)
    with torch.device("meta"), torch.no_grad(), LiveBytes() as live:
        model = MMDiT(config).to(torch.bfloat16)
        held = live.now
        live.peak = held
        sizes = ((*image, PATCH), (*image, 3), (*text, CONTEXT), (*text, 3), (3,), (3, POOLED), (*image, CONDITION))
        model(*(torch.empty(*size) for size in sizes), attend=fused_attention)
    assert live.peak - held <= drawing_memory(shape, batch) <= 1.08 * (live.peak - held)
