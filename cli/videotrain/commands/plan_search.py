"""`videotrain plan --search`: the fastest settings that fit, as a table and as YAML to paste."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from videotrain.commands.plan_memory import gigabytes
from videotrain.commands.plan_tables import new_table
from videotrain.errors import UsageError
from videotrain.manifest_file import Source, load_run
from videotrain_api.cost.search import Choice, StageSearch, pasted_fields, search_stage
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_of, pool_path
from videotrain_api.rules.pod_security import PodPolicy

WIDTH = 130
NOTE = (
    "# Modelled from assumed and quoted rates: measure with `videotrain-trainer tune`. Every step keeps its samples.\n"
    "# To paste into the stages of these names.\n"
)


def print_search(source: Path | Source, pod_policy: PodPolicy, defaults: RunDefaults, *, as_json: bool) -> int:
    """Print the fastest settings that fit for every train stage of a manifest, which may itself not fit.

    Args:
        source: manifest.
        pod_policy: what the worker pods have to keep to.
        defaults: of the cluster, which the run may not override where they are enforced.
        as_json: machine-readable output.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused for something else than memory.
        UsageError: it has no train stage, or a stage that fits in no way.
    """
    run = load_run(source, pod_policy, defaults, fitting=False)
    found = list(_searched(run))
    if not found:
        raise UsageError(f"--search: {source} has no train stage")
    if as_json:
        sys.stdout.write(json.dumps([_document(stage) for stage in found], indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for stage in found:
        console.print(_table(stage))
    sys.stdout.write(NOTE + pasted(found))
    return 0


def pasted(found: list[StageSearch]) -> str:
    """The changed parts of the stages as YAML."""
    stages = [{"name": stage.stage, "train": pasted_fields(stage.task.buckets, stage.task.parallel)} for stage in found]
    text: str = yaml.safe_dump({"stages": stages}, default_flow_style=None, sort_keys=False, width=120)
    return text


def _searched(run: VideoTrainingRun) -> Iterator[StageSearch]:
    for index, stage in enumerate(run.spec.stages):
        if stage.train is not None:
            found = search_stage(TrainMemory(run, index))
            if found is None:
                limit = f"{pool_of(run, stage).gpu_memory_gigabytes:g} GB"
                raise UsageError(
                    f"--search: stage {stage.name!r} has a row that fits {limit} in no way; take more nodes, or a "
                    f"smaller model, or see {pool_path(run, index)}.gpuMemoryGigabytes"
                )
            yield found


def _table(stage: StageSearch) -> Table:
    """What there is and what was found, row by row."""
    layout = stage.task.parallel
    engine = layout.engine if layout.engine == "fsdp2" else f"{layout.engine}, zeroStage {layout.deepspeed_stage}"
    title = f"{stage.stage}: fastest that fits, {engine}, {stage.gpus} GPUs (modelled)"
    columns = (
        "batch x micro",
        "degree",
        "recompute",
        "GB",
        "samples/s",
        "now: batch x micro",
        "GB",
        "samples/s",
        "gain",
    )
    table = new_table(title, ("row",), columns)
    for before, after in zip(stage.before, stage.after, strict=True):
        setting = after.setting
        gain = f"{after.samples_per_second / before.samples_per_second:.2f}"
        new = (_cut(after), str(setting.context_parallel), setting.recompute, *_speed(after))
        table.add_row(after.memory.row, *new, _cut(before), *_speed(before), gain if before.memory.fits else "now fits")
    return table


def _cut(choice: Choice) -> str:
    return f"{choice.setting.batch_size} x {choice.setting.micro_batches}"


def _speed(choice: Choice) -> tuple[str, str]:
    return gigabytes(choice.memory.total), f"{choice.samples_per_second:,.1f}"


def _document(stage: StageSearch) -> dict[str, Any]:
    def row(choice: Choice) -> dict[str, Any]:
        return {
            "row": choice.memory.row,
            **choice.setting.row_fields(),
            "engine": choice.setting.engine,
            "bytes": choice.memory.total,
            "fits": choice.memory.fits,
            "modelledSecondsPerStep": choice.seconds_per_step,
            "modelledSamplesPerSecond": choice.samples_per_second,
        }

    return {
        "stage": stage.stage,
        "gpus": stage.gpus,
        "train": pasted_fields(stage.task.buckets, stage.task.parallel),
        "before": [row(choice) for choice in stage.before],
        "after": [row(choice) for choice in stage.after],
    }
