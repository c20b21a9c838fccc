"""Worlds of gloo ranks that share sequences, and what they must agree on with a rank that has them whole.

Everything is computed in float64: what the models do in float32 is done in float64 as well, so that a difference is
that of the algorithm and not of rounding.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.threads import set_threads
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.resource.stages import BaseQuantization, ConditioningMix, LearningRatePiece, Optimizer, TrainTask
from videotrain_trainer.data.loader import LatentBatch, SampleKey
from videotrain_trainer.diffusion.conditioning import KINDS
from videotrain_trainer.diffusion.flow_matching import FlowInputs, ModelFacts, flow_inputs, training_draws
from videotrain_trainer.networks.attention import attention
from videotrain_trainer.networks.lora.base import quantize_base
from videotrain_trainer.networks.lora.layers import LoraConfig, inject
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.context import ContextGroups
from videotrain_trainer.parallel.data_parallel import share_of
from videotrain_trainer.text.byte_encoder import TextFeatures
from videotrain_trainer.training.shared_loss import micro_batch_loss

CHANNELS, CONTEXT, POOLED, HEAD = 3, 8, 6, 8
ROWS = [{"resolution": "64px", "frames": 8, "batchSize": 1}]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "videotrain_trainer.tasks.train"])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its samples and who shares them."""

    degree: int
    gpus_per_node: int = 4
    heads: int = 4
    latents: tuple[int, int, int] = (17, 1, 3)
    """Frames, rows and columns: one token each."""
    text: int = 6
    """Text tokens."""
    batch: int = 8
    micro_batches: int = 3
    """Of a step; groups share them unevenly unless they divide."""
    skip_given: bool = False
    lora: bool = False
    base: BaseQuantization = "none"
    """What the frozen base of an adapter is held in."""
    condition: bool = True
    """The model has a condition input, and samples have every kind of conditioning."""
    layout: str = "half-split"
    """Of the rotary positions."""


def run_ranks(folder: Path, size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, size, *arguments)`, a function of a module, returns on each rank of a world."""
    processes = [
        _CONTEXT.Process(target=_rank, args=(str(folder), rank, size, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    told = [folder / f"failed-{rank}" for rank in range(size)]
    failed = [path.read_text() for path in told if path.exists()]
    assert [process.exitcode for process in processes] == [0] * size, "\n".join(failed)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(size)]


def _rank(folder: str, rank: int, size: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    set_threads()
    where = Path(folder)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=120)
        )
        torch.save(work(rank, size, *arguments), where / f"found-{rank}")
        dist.destroy_process_group()
    except BaseException as error:
        (where / f"failed-{rank}").write_text("".join(traceback.format_exception(error)))
        os._exit(1)
    os._exit(0)


def in_float64() -> None:
    """Let everything in this process that asks for float32 compute in float64."""
    Tensor.float = Tensor.double  # type: ignore[method-assign]


def build(case: Case) -> MMDiT:
    """A model with random weights, of which none is zero."""
    config = MMDiTConfig(
        in_channels=CHANNELS,
        context_dim=CONTEXT,
        pooled_dim=POOLED,
        hidden_size=case.heads * HEAD,
        num_heads=case.heads,
        double_blocks=2,
        single_blocks=2,
        mlp_ratio=2.0,
        rope_axes=(4, 2, 2),
        patch_size=1,
        cond_embed=case.condition,
        guidance_embed=False,
        rope_layout=case.layout,
    )
    torch.manual_seed(0)
    model = MMDiT(config)
    if case.lora:
        inject(model, LoraConfig(rank=2, alpha=4.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
    model.double()
    if case.base != "none":
        quantize_base(model, case.base)
    return model


def inputs(case: Case, micro_batch: int) -> FlowInputs:
    """Those of a micro-batch, as the train task makes them: from the keys of its samples."""
    generator = torch.Generator().manual_seed(micro_batch)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    frames, rows, columns = case.latents
    batch = LatentBatch(
        latent_BCTHW=draw(case.batch, CHANNELS, frames, rows, columns),
        cond_first_BC1HW=draw(case.batch, CHANNELS, 1, rows, columns),
        cond_last_BC1HW=draw(case.batch, CHANNELS, 1, rows, columns),
        references_BCFHW={},
        context_BLD=draw(case.batch, case.text, CONTEXT),
        pooled_BP=draw(case.batch, POOLED),
        keys=tuple(SampleKey(f"u{n}", "b", case.batch * micro_batch + n) for n in range(case.batch)),
        text_tokens=(case.text,) * case.batch,
    )
    mix = ConditioningMix(**dict.fromkeys(KINDS, 1.0)) if case.condition else ConditioningMix()
    rate = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])
    task = TrainTask(steps=1, buckets=ROWS, optimizer=rate, conditioning=mix)
    facts = ModelFacts(patch=1, cond_embed=case.condition, guidance_embed=False, causal=False)
    null_text = TextFeatures(context_BLD=draw(1, case.text, CONTEXT), pooled_BP=draw(1, POOLED), lengths=[case.text])
    draws = training_draws(batch.keys, batch.latent_BCTHW.shape[1:], task, facts, seed=5)
    return flow_inputs(batch, draws, facts, null_text)


@dataclass(frozen=True)
class Comparison:
    """A step of a world beside that of one rank with whole sequences."""

    loss: float
    """Relative difference of the mean loss."""
    gradient: float
    """Greatest difference of a gradient, relative to the greatest element of its parameter's."""
    kinds: frozenset[str]
    """How samples were conditioned."""


def compare(rank: int, size: int, case: Case) -> Comparison:
    """Gradients as the engine averages them over the ranks, beside those of whole sequences."""
    in_float64()
    group = ContextGroups(rank, [case.degree], case.gpus_per_node, case.heads).of(case.degree)
    share = share_of(rank, size, case.micro_batches, case.degree)
    whole, split, kinds, losses = build(case), build(case), set(), torch.zeros(2, dtype=torch.float64)
    for number in range(case.micro_batches):
        given = inputs(case, number)
        kinds |= set(given.kinds)
        loss = micro_batch_loss(whole, given, None, case.skip_given) / case.micro_batches
        loss.backward()
        losses[0] += loss.detach()
    for number in share.micro_batches:
        loss = micro_batch_loss(split, inputs(case, number), group, case.skip_given)
        (loss * share.scale).backward()
        losses[1] += loss.detach() / case.micro_batches / case.degree
    dist.all_reduce(losses[1])
    pairs = zip(whole.named_parameters(), split.parameters(), strict=True)
    found = [_difference(name, expected, actual, size) for (name, expected), actual in pairs if expected.requires_grad]
    return Comparison(float((losses[1] / losses[0] - 1).abs()), max(found), frozenset(kinds))


def _difference(name: str, expected: nn.Parameter, actual: nn.Parameter, size: int) -> float:
    assert expected.grad is not None, name
    mean = torch.zeros_like(expected) if actual.grad is None else actual.grad.clone()
    dist.all_reduce(mean)
    largest = float(expected.grad.abs().max())
    assert largest > 0, f"{name} has no gradient, so the comparison would show nothing"
    return float((mean / size - expected.grad).abs().max()) / largest


def compare_all(rank: int, size: int, cases: list[Case]) -> list[Comparison]:
    """`compare` for many cases in one world."""
    return [compare(rank, size, case) for case in cases]


class _Exchanges(TorchDispatchMode):
    """Notes how many bytes each exchange sends to other ranks."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.sent: list[int] = []
        self._place = place

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops._c10d_functional.all_to_all_single.default:
            others = sum(args[2]) - args[2][self._place]
            self.sent.append(others * args[0].element_size())
        return function(*args, **(kwargs or {}))


def exchanges_of_a_block(rank: int, size: int, case: Case) -> dict[str, tuple[list[int], list[int]]]:
    """For one block of each kind the bytes sent by each exchange, forward and backward."""
    group = ContextGroups(rank, [case.degree], case.gpus_per_node, case.heads).of(case.degree)
    assert group is not None
    model, found = build(case).float(), {}
    streams = tuple(torch.randn(1, tokens // case.degree, model.config.hidden_size) for tokens in (64, 16))
    ids = torch.zeros(1, 80 // case.degree, 3)
    attend = group.attention(attention, text_tokens=16, image_tokens=64)
    for name, block, given in (
        ("double", model.double_blocks[0], streams),
        ("single", model.single_blocks[0], (torch.cat(streams, dim=1),)),
    ):
        # What comes in has a gradient, as between blocks.
        given = tuple(stream.clone().requires_grad_() for stream in given)
        with _Exchanges(group.place) as counted:
            out = block(*given, torch.randn(1, model.config.hidden_size), model.rope(ids), attend)
            forward = list(counted.sent)
            sum(part.sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
        found[name] = (forward, counted.sent[len(forward) :])
    return found


@dataclass(frozen=True)
class Compiled:
    """What the compiler makes of a block that exchanges tokens."""

    breaks: dict[str, int]
    graphs: list[int]
    """For every graph, how many exchanges are in it."""
    difference: float
    """Greatest difference of results and gradients from the block as it is written, relative."""


def compile_alone(_rank: int, _size: int, place: int, size: int, *arguments: Any) -> dict[str, Compiled]:
    """`compile_block` as rank `place` of a larger world that is not there: what is exchanged is not defined."""
    dist.destroy_process_group()
    dist.init_process_group("fake", rank=place, world_size=size, store=FakeStore())
    return compile_block(place, size, *arguments)


def compile_block(rank: int, _size: int, cases: list[Case], lengths: list[tuple[int, int]]) -> dict[str, Compiled]:
    """Compile one block of each kind for dynamic shapes, and run it at several lengths (text, image) of every case."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    in_float64()
    found = {}
    for kind in ("double", "single"):
        dynamo.reset()
        counters.clear()
        graphs: list[int] = []

        def backend(graph: torch.fx.GraphModule, _example: Any, graphs: list[int] = graphs) -> Any:
            graphs.append(sum("all_to_all" in str(node.target) for node in graph.graph.nodes))
            return graph.forward

        model, worst = build(cases[0]), 0.0
        block = (model.double_blocks if kind == "double" else model.single_blocks)[0]
        compiled = torch.compile(block, backend=backend, dynamic=True)
        for case in cases:
            group = ContextGroups(rank, [case.degree], case.gpus_per_node, case.heads).of(case.degree)
            assert group is not None
            for text, image in lengths:
                attend = group.attention(attention, text, image)
                streams = [
                    group.part(torch.randn(2, tokens, model.config.hidden_size).double()) for tokens in (image, text)
                ]
                given = streams if kind == "double" else [torch.cat(streams, dim=1)]
                rope = model.rope(torch.zeros(2, sum(stream.shape[1] for stream in streams), 3))
                vector = torch.randn(2, model.config.hidden_size).double()
                results = []
                for run in (block, compiled):
                    leaves = [stream.detach().clone().requires_grad_() for stream in given]
                    out = run(*leaves, vector, rope, attend)
                    parts = out if isinstance(out, tuple) else (out,)
                    sum(part.square().sum() for part in parts).backward()
                    results.append([*parts, *(leaf.grad for leaf in leaves)])
                worst = max(worst, *(_relative(a, b) for a, b in zip(*results, strict=True)))
        found[kind] = Compiled(dict(counters["graph_break"]), graphs, worst)
    return found


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / one.detach().abs().max()) if one.numel() else 0.0
