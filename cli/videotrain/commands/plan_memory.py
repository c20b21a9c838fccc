"""Memory of one GPU by stage and row or size, for `videotrain plan`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, get_args

from rich.table import Table

from videotrain.commands.plan_tables import new_table
from videotrain.wording import compact
from videotrain_api.config import presets
from videotrain_api.cost.clip_stage_memory import (
    COUNTED,
    AutoencoderMemory,
    CodingMemory,
    drawing,
    drawing_between_steps,
    encode_rows,
    reconstructing,
)
from videotrain_api.cost.host_memory import PROCESS, HostMemory, host_memory
from videotrain_api.cost.stage_memory import GIGA, RowMemory, RowSetting, TrainMemory, worlds_of
from videotrain_api.resource.stages import EngineName
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_of

_PARTS: Final = ("weights", "gradients", "optimizer", "average", "activations", "temporaries", "reserve")
_COLUMNS: Final = (
    *("batch", "micro", "degree", "recompute", "tokens"),
    *("weights", "grad.", "optim.", "EMA", "activ.", "temp.", "reserve", "total"),
)
_ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)


@dataclass(frozen=True)
class PlannedRow:
    """A row of a stage's bucket table: what it needs as the manifest has it, and under every engine in other worlds."""

    stage: str
    setting: RowSetting
    memory: RowMemory
    """In the smallest world that the stage may have, which needs most."""
    elsewhere: list[RowMemory]
    """By engine, then by number of GPUs."""


def planned_rows(run: VideoTrainingRun, worlds: Collection[int]) -> Iterator[PlannedRow]:
    """Every row of every stage that trains.

    Args:
        run: a valid manifest.
        worlds: numbers of GPUs to look at.
    """
    for index, stage in enumerate(run.spec.stages):
        if stage.autoencoder is not None and _counted(run):
            clips = AutoencoderMemory(run, index)
            setting = clips.setting()
            elsewhere = [clips.of(gpus, replace(setting, engine=e)) for e in _ENGINES for gpus in sorted(worlds)]
            yield PlannedRow(stage.name, setting, clips.of(worlds_of(run, stage)[0]), elsewhere)
        if stage.train is None:
            continue
        table = TrainMemory(run, index)
        for number, row in enumerate(stage.train.buckets):
            setting = table.setting(row)
            others = [replace(setting, engine=engine) for engine in _ENGINES]
            elsewhere = [table.of(number, gpus, other) for other in others for gpus in sorted(worlds)]
            yield PlannedRow(stage.name, setting, table.of(number, worlds_of(run, stage)[0], setting), elsewhere)


def coding_rows(run: VideoTrainingRun) -> Iterator[tuple[str, CodingMemory]]:
    """Stages that encode clips, draw videos or reconstruct clips, and what each of their sizes needs."""
    for index, stage in enumerate(run.spec.stages):
        if not _counted(run) or not pool_of(run, stage).gpus_per_node:
            continue
        if stage.encode is not None:
            yield from ((stage.name, memory) for _, memory in encode_rows(run, index))
        if stage.train is not None and stage.train.samples is not None:
            yield stage.name, drawing_between_steps(run, index, stage.train.samples)
        if stage.sample is not None:
            yield stage.name, drawing(run, index, stage.sample, presets.complete_autoencoder(run.spec.autoencoder))
        if stage.evaluate is not None and stage.evaluate.reconstruction is not None:
            spec = presets.complete_autoencoder(run.spec.autoencoder)
            yield stage.name, reconstructing(run, index, stage.evaluate.reconstruction, spec)


def _counted(run: VideoTrainingRun) -> bool:
    return presets.complete_autoencoder(run.spec.autoencoder).kind in COUNTED


def usual_worlds(run: VideoTrainingRun) -> set[int]:
    """One node, and the smallest and the largest world of every stage that trains; GPUs."""
    trained = [stage for stage in run.spec.stages if stage.train or stage.autoencoder]
    bounds = [worlds_of(run, stage) for stage in trained]
    return {
        *(pool_of(run, stage).gpus_per_node for stage in trained),
        *(world[0] for world in bounds),
        *(world[-1] for world in bounds),
    }


def memory_tables(rows: Sequence[PlannedRow]) -> Iterator[Table]:
    """Parts of the memory in the smallest world of each stage, and totals under every engine in several worlds."""
    for name, of_stage in groupby(rows, key=lambda row: row.stage):
        members = list(of_stage)
        memory = members[0].memory
        text = any(row.memory.memory.text for row in members)
        title = f"{name}: GB of a GPU's {gigabytes(memory.limit)}, on {memory.gpus} GPUs under {memory.engine}"
        table = new_table(title, ("row",), (*_COLUMNS[:-1], "text", _COLUMNS[-1]) if text else _COLUMNS)
        for row in members:
            table.add_row(*_cells(row, (*_PARTS, "text") if text else _PARTS))
        yield table
    if rows:
        worlds = list(dict.fromkeys(other.gpus for other in rows[0].elsewhere))
        title = f"GB in total under {' / '.join(_ENGINES)}; * does not fit"
        table = new_table(title, ("stage", "row"), [f"{world} GPUs" for world in worlds])
        for row in rows:
            table.add_row(row.stage, row.memory.row, *(_totals(row, world) for world in worlds))
        yield table


def coding_table(rows: Sequence[tuple[str, CodingMemory]]) -> Table:
    """The same of what is encoded and drawn."""
    title = f"Encoding and drawing: GB of a GPU's {gigabytes(rows[0][1].limit)} at the largest moment"
    table = new_table(title, ("stage", "size", "moment"), ("models", "work", "reserve", "total"))
    for name, memory in rows:
        amounts = (memory.models, memory.work, memory.reserve, memory.total)
        table.add_row(name, memory.row, memory.doing, *map(gigabytes, amounts))
    return table


def coding_document(rows: Sequence[tuple[str, CodingMemory]]) -> list[dict[str, Any]]:
    """The same for machines, bytes."""
    return [{"stage": name, **memory.to_wire(), "fits": memory.fits} for name, memory in rows]


def host_rows(run: VideoTrainingRun) -> list[tuple[str, int, HostMemory]]:
    """Every train stage, the GPUs of its smallest world and what a node of it needs."""
    tables = [TrainMemory(run, index) for index, stage in enumerate(run.spec.stages) if stage.train]
    worlds = [worlds_of(run, table.stage)[0] for table in tables]
    return [(t.stage.name, gpus, host_memory(t, gpus)) for t, gpus in zip(tables, worlds, strict=True)]


def host_table(rows: Sequence[tuple[str, int, HostMemory]]) -> Table:
    """The same for people."""
    title = f"Host memory of a node, GB, {PROCESS / GIGA:.0f} a process assumed, the encoded set's manifest left out"
    parts = ("processes", "start", "checkpoints", "optimizer", "copies", "batches")
    table = new_table(title, ("stage",), ("GPUs", *parts, "at start", "in training"))
    for name, gpus, memory in rows:
        amounts = [*(getattr(memory, part) for part in parts), memory.at_start, memory.in_training]
        table.add_row(name, str(gpus), *map(gigabytes, amounts))
    return table


def host_document(rows: Sequence[tuple[str, int, HostMemory]]) -> list[dict[str, Any]]:
    """The same for machines, bytes."""
    return [
        {"stage": name, "gpus": gpus, **memory.to_wire(), "atStart": memory.at_start, "inTraining": memory.in_training}
        for name, gpus, memory in rows
    ]


def _cells(row: PlannedRow, names: Sequence[str]) -> tuple[str, ...]:
    setting, memory = row.setting, row.memory
    how = (str(setting.batch_size), str(setting.micro_batches), str(setting.context_parallel), setting.recompute)
    parts = (gigabytes(getattr(memory.memory, part)) for part in names)
    return (memory.row, *how, compact(memory.tokens) if memory.tokens else "-", *parts, gigabytes(memory.total))


def _totals(row: PlannedRow, gpus: int) -> str:
    found = [other for other in row.elsewhere if other.gpus == gpus]
    return " / ".join(gigabytes(other.total) + ("" if other.fits else "*") for other in found)


def memory_document(rows: list[PlannedRow]) -> list[dict[str, Any]]:
    """The same for machines, bytes."""
    return [
        {
            "stage": row.stage,
            **row.setting.row_fields(),
            **row.memory.to_wire(),
            "elsewhere": [
                {"engine": other.engine, "gpus": other.gpus, "total": other.total, "fits": other.fits}
                for other in row.elsewhere
            ],
        }
        for row in rows
    ]


def gigabytes(amount: int) -> str:
    """Of 10^9 bytes, one decimal."""
    return f"{amount / GIGA:,.1f}"
