"""`videotrain-trainer tune`: which settings of a manifest's rows are fastest on these GPUs, and what they need."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from videotrain_api.resource.stages import EngineName
from videotrain_trainer.errors import ConfigError

if TYPE_CHECKING:
    from videotrain_api.cost.search import Choice
    from videotrain_api.cost.stage_memory import TrainMemory
    from videotrain_api.resource.trainrun import VideoTrainingRun
    from videotrain_trainer.training.tuning import Measured, Tuner
    from videotrain_trainer.worker.stage_context import World

HELP = "measure settings of a manifest's rows on these GPUs, and write the fastest as YAML to paste"
SLACK = 1.1
"""How much of a GPU's memory, as modelled, a setting may need to be tried."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.description = (
        "For every row of a manifest's train stages try the settings that `videotrain plan --search` takes for the "
        "fastest, with random weights and samples, and under `text: online` with text encoders beside them. On several "
        "GPUs: torchrun --nproc-per-node N -m videotrain_trainer.cli tune MANIFEST. Lines of JSON as they come, then "
        "YAML."
    )
    parser.add_argument("manifest", type=Path, help="YAML file with one VideoTrainingRun")
    parser.add_argument("--stage", action="append", metavar="NAME", help="may be repeated; default: all train stages")
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="instead of the manifest's, in the engine's usual zeroStage",
    )
    parser.add_argument("--tries", type=_positive, default=4, metavar="N", help="settings of each row (4)")
    parser.add_argument("--micro-batches", type=_positive, default=3, metavar="N", help="of each measurement (3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the YAML; standard output if unset")


def run(options: argparse.Namespace) -> int:
    """Measure; rank 0 prints."""
    from videotrain_api.cost.stage_memory import TrainMemory

    manifest = _manifest(options.manifest)
    wanted = [index for index, stage in enumerate(manifest.spec.stages) if stage.train and _asked(options, stage.name)]
    if not wanted:
        names = ", ".join(stage.name for stage in manifest.spec.stages if stage.train) or "none"
        raise ConfigError(f"--stage {options.stage}: no such train stage; the manifest has: {names}")
    with _world() as world:
        stages = []
        for index in wanted:
            table = TrainMemory(manifest, index)
            stages.append({"name": table.stage.name, "train": _tuned(table, world, options)})
        if world.rank == 0:
            _write(options.output, stages)
    return 0


def _tuned(table: TrainMemory, world: World, options: argparse.Namespace) -> dict[str, Any]:
    from videotrain_api.config.presets import complete_transformer
    from videotrain_api.cost.search import choices, pasted_fields
    from videotrain_api.cost.stage_memory import worlds_of
    from videotrain_trainer.networks.attention_kernels import attention_case, attention_kernel
    from videotrain_trainer.parallel.engine import compute_dtype
    from videotrain_trainer.parallel.peers import first_choice
    from videotrain_trainer.training.tuning import Tuner

    task, gpus = table.task, worlds_of(table.run, table.stage)[-1]
    changes: dict[str, Any] = {"checkpoint_double_blocks": None, "checkpoint_single_blocks": None}
    if options.engine and options.engine != task.parallel.engine:
        changes |= {"engine": options.engine, "zero_stage": None}
    layout = task.parallel.model_copy(update=changes)
    rows = []
    for number in range(len(task.buckets)):
        found = choices(table, layout, number, gpus, SLACK)
        possible = [choice for choice in found if world.size % choice.setting.context_parallel == 0]
        rows.append(sorted(possible, key=lambda choice: choice.seconds_per_step))
    case = attention_case(complete_transformer(table.run.spec.model), world.device, compute_dtype(task.precision))
    buckets = []
    with attention_kernel(task.attention, case, first_choice):
        tuner = Tuner(table, layout, world, {c.setting.context_parallel for row in rows for c in row})
        for number, row in enumerate(rows):
            held = list(_measured(tuner, row, gpus, world, options))
            if not held:
                raise ConfigError(
                    f"spec.stages[{table.index}].train.buckets[{number}]: {len(row)} settings, of which none fits "
                    f"these {world.size} GPUs; use more of them, a smaller model or another --engine"
                )
            buckets.append(min(held, key=lambda each: each[0])[1].choice.bucket)
    return pasted_fields(buckets, layout)


def _measured(
    tuner: Tuner, row: list[Choice], gpus: int, world: World, options: argparse.Namespace
) -> Iterator[tuple[float, Measured]]:
    """Seconds of a step and measurement of so many settings that memory is enough for, those modelled fastest first."""
    from videotrain_trainer.training.tuning import described

    left = options.tries
    for choice in row:
        one = tuner.measure(choice, options.micro_batches)
        if world.rank == 0:
            sys.stdout.write(json.dumps({"row": choice.memory.path, **described(one, gpus)}) + "\n")
            sys.stdout.flush()
        seconds = one.step_seconds(gpus)
        if seconds is not None:
            yield seconds, one
            left -= 1
        if not left:
            return


def _asked(options: argparse.Namespace, name: str) -> bool:
    return options.stage is None or name in options.stage


def _manifest(path: Path) -> VideoTrainingRun:
    import yaml

    from videotrain_api.schema import ManifestError
    from videotrain_api.validation import parse_run
    from videotrain_api.vocabulary import KIND

    try:
        documents = [d for d in yaml.safe_load_all(path.read_text("utf-8")) if isinstance(d, dict)]
        runs = [document for document in documents if document.get("kind") == KIND]
        if len(runs) != 1:
            raise ConfigError(f"{path}: {len(runs)} documents of kind {KIND}; exactly one is needed")
        return parse_run(runs[0], fitting=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ManifestError) as error:
        raise ConfigError(f"{path}: {error}") from error


@contextmanager
def _world() -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    from videotrain_trainer.worker.stage_context import World

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=local_rank, device=device)
    finally:
        dist.destroy_process_group()


def _write(output: Path | None, stages: list[dict[str, Any]]) -> None:
    import yaml

    text = yaml.safe_dump({"stages": stages}, default_flow_style=None, sort_keys=False, width=120)
    text = f"# Measured by `videotrain-trainer tune`. To paste into the stages of these names.\n{text}"
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, "utf-8")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; a whole number from 1 on is needed")
    return int(text)
