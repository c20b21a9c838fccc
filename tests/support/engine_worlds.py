"""Worlds of gloo ranks that train a small transformer with every engine in turn, and a single process beside them."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from support.threads import set_threads
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from videotrain_api.resource.stages import LearningRatePiece, Optimizer
from videotrain_trainer.errors import GradientsLost
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel import gradient_check
from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.parallel.check_models import CheckCase, small_transformer
from videotrain_trainer.parallel.context import ContextGroups
from videotrain_trainer.parallel.data_parallel import share_of
from videotrain_trainer.parallel.engine import Engine, EngineOptions
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sharded_state import Quantity, numel, packed_length
from videotrain_trainer.worker.stage_context import World

LEARNING_RATE = 1e-3
OPTIMIZER = Optimizer(
    learning_rate=[LearningRatePiece(value=LEARNING_RATE)], epsilon=1e-8, gradient_clip=0.5, weight_decay=0.01
)
LARGE = (120, 8)
"""Width and blocks of a model beside whose weights its activations are small, and beside which one block is."""
QUANTITIES: tuple[Quantity, ...] = ("master", "exp_avg", "exp_avg_sq")


def options(engine: str, precision: str = "fp32", **changes: Any) -> EngineOptions:
    """`zero0` to `zero3`, `offload1` to `offload3`, `fsdp2` or `fsdp2-offload`."""
    common = EngineOptions(optimizer=OPTIMIZER, precision=precision, keep_average=False, **changes)  # type: ignore[arg-type]
    offload = "optimizer" if "offload" in engine else "none"
    if engine.startswith("fsdp2"):
        return replace(common, engine="fsdp2", offload=offload)
    return replace(common, zero_stage=int(engine[-1]), offload=offload)  # type: ignore[arg-type]


def small_model(width: int = 24, blocks: int = 2) -> MMDiT:
    """So many blocks of each kind; rows that not every world of the tests divides."""
    config = MMDiTConfig(
        in_channels=5,
        context_dim=6,
        pooled_dim=7,
        hidden_size=width,
        num_heads=2,
        double_blocks=blocks,
        single_blocks=blocks,
        mlp_ratio=2.0,
        rope_axes=(width // 6, width // 6, width // 6),
        patch_size=1,
        cond_embed=True,
        guidance_embed=False,
    )
    model = MMDiT(config)
    initialize(model, 1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model


def micro_batch_loss(model: Callable[..., Any], step: int, micro_batch: int) -> Tensor:
    """Mean squared error of a micro-batch that step and number choose."""
    generator = torch.Generator().manual_seed(1000 * step + micro_batch)
    tokens, text = 6, 4

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    ids = torch.arange(tokens).view(1, tokens, 1).expand(1, tokens, 3).float()
    out = model(
        draw(1, tokens, 5),
        ids,
        draw(1, text, 6),
        torch.zeros(1, text, 3),
        draw(1).sigmoid(),
        draw(1, 7),
        draw(1, tokens, 6),
    )
    return (out.float() - draw(1, tokens, 5)).square().mean()


@dataclass
class Result:
    """What a world found, the same on all ranks."""

    norms: list[float]
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Quantity and parameter to whole tensors."""


def run_steps(engine: Engine, rank: int, size: int, micro_batches: int, steps: range) -> list[float]:
    """Train as the loop does; gradient norms."""
    share = share_of(rank, size, micro_batches, 1)
    norms = []
    for step in steps:
        for micro_batch, scale, last in share.turns(engine.in_step):
            engine.backward(micro_batch_loss(engine, step, micro_batch) * scale, last)
        norms.append(float(engine.step(LEARNING_RATE)))
    return norms


def whole_state(engine: Engine, rank: int) -> dict[str, dict[str, Tensor]]:
    """Every quantity of every parameter, from all ranks' saved pieces. Collective."""
    out: dict[str, dict[str, Tensor]] = {}
    shards = engine.shards
    for quantity in QUANTITIES:
        vector = torch.empty(packed_length(shards.saved))
        shards.read(quantity, vector)
        found = {name: torch.zeros(shape) for name, shape in shards.shapes.items()}
        for piece in shards.saved:
            found[piece.parameter].view(-1)[piece.start : piece.start + piece.length] = vector[
                piece.offset : piece.offset + piece.length
            ]
        for tensor in found.values():
            dist.all_reduce(tensor)
        out[quantity] = found
    return out


def load_state(engine: Engine, state: dict[str, dict[str, Tensor]], step: int) -> None:
    """Give an engine whole tensors, as a checkpoint does."""
    shards = engine.shards
    for quantity in QUANTITIES:
        vector = torch.empty(packed_length(shards.held))
        for piece in shards.held:
            flat = state[quantity][piece.parameter].view(-1)
            vector[piece.offset : piece.offset + piece.length] = flat[piece.start : piece.start + piece.length]
        shards.write(quantity, vector)
    shards.set_optimizer_step(step)
    engine.refresh()


def plain(micro_batches: int, steps: int, precision: str = "fp32") -> Result:
    """One process, no engine: float32 sums of the gradients of a model in that precision, and torch's AdamW."""
    masters, spec = small_model(), OPTIMIZER
    model = small_model().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(
        masters.parameters(), betas=(spec.beta1, spec.beta2), eps=spec.epsilon, weight_decay=spec.weight_decay
    )
    optimizer.param_groups[0]["lr"] = LEARNING_RATE
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        for micro_batch in range(micro_batches):
            model.zero_grad()
            (micro_batch_loss(model, step, micro_batch) / micro_batches).backward()
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
        norms.append(float(nn.utils.clip_grad_norm_(masters.parameters(), spec.gradient_clip)))
        optimizer.step()
        model.load_state_dict(masters.state_dict())
    named = dict(masters.named_parameters())
    moments = {q: {name: optimizer.state[p][q] for name, p in named.items()} for q in ("exp_avg", "exp_avg_sq")}
    return Result(norms, {"master": {name: p.detach() for name, p in named.items()}, **moments})


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the tensor that differs most, relative to its size."""
    return max(float((one[name] - value).norm() / value.norm()) for name, value in other.items())


def distance_of_all(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of all tensors as one vector, relative to its size."""
    parts = [(one[name] - value, value) for name, value in other.items()]
    error, size = (torch.stack([part[index].norm() for part in parts]).norm() for index in (0, 1))
    return float(error / size)


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "videotrain_trainer.parallel.build", "support.engine_worlds"])


def _rank(folder: str, rank: int, size: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    set_threads()
    where = Path(folder)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    world = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
    torch.save(work(world, *arguments), where / f"found-{rank}")
    os._exit(0)


def in_world(folder: Path, size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(world, *arguments)` returns on each rank of a new world."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        _CONTEXT.Process(target=_rank, args=(str(folder), rank, size, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0, f"exit code {process.exitcode}"
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(size)]


def train_each(world: World, engines: list[str], precision: str, micro_batches: int, steps: int) -> dict[str, Result]:
    """Train the small model with every engine, one after the other."""
    found = {}
    for name in engines:
        engine = shard_model(small_model(), options(name, precision), world)
        norms = run_steps(engine, world.rank, world.size, micro_batches, range(steps))
        found[name] = Result(norms, whole_state(engine, world.rank))
    return found


def hand_over(world: World, before: str, after: list[str], precision: str) -> dict[str, Any]:
    """Train with one engine, give its state to others: what they hold then, and after another step."""
    first = shard_model(small_model(), options(before, precision), world)
    run_steps(first, world.rank, world.size, 3, range(2))
    state = whole_state(first, world.rank)
    norms = run_steps(first, world.rank, world.size, 3, range(2, 3))
    found: dict[str, Any] = {"given": state, "went on": Result(norms, whole_state(first, world.rank))}
    for name in after:
        engine = shard_model(small_model(), options(name, precision), world)
        load_state(engine, state, 2)
        held = whole_state(engine, world.rank)
        norms = run_steps(engine, world.rank, world.size, 3, range(2, 3))
        found[name] = (held, Result(norms, whole_state(engine, world.rank)))
    return found


COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "all_to_all_single",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)


@dataclass
class Traffic:
    """Collectives of a step, each as its name, data type and elements of its largest tensor."""

    calls: list[tuple[str, str, int]] = field(default_factory=list)

    def count(self, *names: str) -> int:
        """Calls of these collectives with more than a number or two."""
        return sum(name in names and elements > 8 for name, _, elements in self.calls)

    def elements(self, dtype: torch.dtype, *names: str) -> int:
        """Elements that they moved in a data type."""
        return sum(n for name, kind, n in self.calls if name in names and kind == str(dtype))


def watch(traffic: Traffic) -> None:
    """Note every collective of this process from now on; one that another calls does not count again."""
    inside = [False]

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if inside[0]:
                return call(*arguments, **keywords)
            given = [*arguments, *keywords.values()]
            tensors = [t for item in given for t in (item if isinstance(item, list) else [item]) if torch.is_tensor(t)]
            largest = max(tensors, key=Tensor.numel)
            traffic.calls.append((name, str(largest.dtype), largest.numel()))
            inside[0] = True
            try:
                return call(*arguments, **keywords)
            finally:
                inside[0] = False

        return wrapped

    for name in COLLECTIVES:
        call = getattr(dist, name, None)
        if call is not None:
            wrapped = noted(name, call)
            for module in (dist, dist.distributed_c10d):
                setattr(module, name, wrapped)


def held_bytes() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    seen = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor):
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None and not isinstance(tensor, DTensor) and not tensor.is_meta:
                    storage = tensor.untyped_storage()
                    seen[storage._cdata] = storage.nbytes()
    return sum(seen.values())


def costs(world: World, names: list[str]) -> dict[str, dict[str, Any]]:
    """What a step of two micro-batches for each rank sends in bf16, and what engines hold between the two."""
    traffic, found = Traffic(), {}
    watch(traffic)  # before DeepSpeed looks for its collectives
    for name in names:
        before = held_bytes()
        engine = shard_model(small_model(*LARGE), options(name, "bf16"), world)
        run_steps(engine, world.rank, world.size, 2 * world.size, range(1))
        traffic.calls.clear()
        engine.backward(micro_batch_loss(engine, 1, world.rank), last=False)
        held = held_bytes() - before
        engine.backward(micro_batch_loss(engine, 1, world.size + world.rank), last=True)
        engine.step(LEARNING_RATE)
        parameters = sum(numel(shape) for shape in engine.shards.shapes.values())
        found[name] = {
            "traffic": Traffic(list(traffic.calls)),
            "bytes per parameter": held / parameters,
            "parameters": parameters,
        }
    return found


Loss = Literal["none", "of a rank", "of a rank in one block", "factor of the degree"]


def plant(loss: Loss, engine: Engine, world: World) -> None:
    """Let an engine lose gradients, as releases of libraries have."""
    backward, last_rank = engine.backward, world.rank == world.size - 1

    def scaled(value: Tensor, last: bool = True) -> None:
        backward(value * (0.0 if loss == "of a rank" and last_rank else 2.0), last)

    if loss in ("of a rank", "factor of the degree"):
        if loss == "factor of the degree" or last_rank:
            engine.backward = scaled  # type: ignore[method-assign]
    elif loss == "of a rank in one block" and last_rank:
        for parameter in engine.module.double_blocks[1].parameters():
            parameter.register_hook(lambda gradient: 0.0 * gradient)


def check_with(
    world: World, names: list[str], precision: str, degree: int, loss: Loss = "none"
) -> dict[str, tuple[str, Any]]:
    """The gradient check of engines that lose gradients: what it finds, or how it refuses."""

    def planted(module: nn.Module, chosen: EngineOptions, of: World) -> Engine:
        engine = shard_model(module, chosen, of)
        plant(loss, engine, of)
        return engine

    gradient_check.shard_model = planted  # type: ignore[attr-defined]
    config = small_model().config
    groups = ContextGroups(world.rank, [degree], 4, config.num_heads)
    cases = [CheckCase("none", groups.of(degree)), CheckCase("full", None)]
    model = small_transformer(config, cases, world.size, world.device)
    found: dict[str, tuple[str, Any]] = {}
    for name in names:
        try:
            found[name] = "passed", gradient_check.check_gradients(model, options(name, precision), world, WorldPeers())
        except GradientsLost as error:
            found[name] = "refused", str(error)
    return found
