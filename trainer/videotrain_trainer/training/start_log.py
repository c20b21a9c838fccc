"""What rank 0 says of a run that is ready: model, data, layout, memory, versions."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator
from importlib.metadata import version

import torch
from torch import nn

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer import __version__
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.networks.quantized import SCALE, QuantizedLinear
from videotrain_trainer.parallel.engine import TrainedTask
from videotrain_trainer.worker.stage_context import World


def start_lines(
    module: nn.Module, task: TrainedTask, data: TrainingSet, attention: str | None, world: World
) -> Iterator[str]:
    """A line for each.

    Args:
        module: the model, as the objective has it.
        task: of the stage.
        data: samples and their order.
        attention: kernel; None for a model without.
        world: processes.
    """
    # An engine may have left a part of a parameter here, and then says how large it is.
    named = [(name, each) for name, each in module.named_parameters() if not name.endswith(f".{SCALE}")]
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for _, each in named]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    kernel = f", attention by {attention}" if attention else ""
    yield (
        f"model: {type(module).__name__}, {sum(size for size, _ in sizes):,} parameters, {trained:,} of them "
        f"trained, in {task.precision}{_held(module)}{kernel}"
    )
    buckets = data.plan.buckets
    batches = sorted({(data.plan.micro_batches_of(n) * bucket.batch_size) for n, bucket in enumerate(buckets)})
    yield (
        f"data: {sum(bucket.size for bucket in buckets):,} samples in {len(buckets)} buckets of {data.uri}, "
        f"{' or '.join(map(str, batches))} of them a step"
    )
    yield f"layout: {world.size} processes, {_layout(task.parallel)}, sequences shared by {max(data.degrees)}"
    yield f"memory: {_memory(world.device)}"
    names = ("torch", "deepspeed", "numpy", "transformers")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    yield f"versions: videotrain-trainer {__version__}, {found}, Python {platform.python_version()}, {_runtime()}"


def _held(module: nn.Module) -> str:
    """What the frozen part is held in, where that is something else."""
    kinds = {part.quantization for part in module.modules() if isinstance(part, QuantizedLinear)}
    return "".join(f" with a frozen base in {kind}" for kind in sorted(kinds))


def _layout(layout: ParallelLayout) -> str:
    engine = layout.engine if layout.engine == "fsdp2" else f"DeepSpeed ZeRO {layout.deepspeed_stage}"
    return f"{engine}, offload {layout.offload}, recompute {layout.recompute}"


def _memory(device: torch.device) -> str:
    """Most that was held so far; the peak is left as it is, for the first step tells it, too."""
    if device.type != "cuda":
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"{peak / 1e9:.2f} GB at most in this process, which computes on the CPU"
    facts, peak = torch.cuda.get_device_properties(device), torch.cuda.max_memory_allocated(device)
    return f"{peak / 1e9:.2f} GB at most of {facts.total_memory / 1e9:.1f} GB of a {facts.name}"


def _runtime() -> str:
    return f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
