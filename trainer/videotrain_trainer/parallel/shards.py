"""The float32 state that a rank holds under each engine, seen as packed vectors.

FSDP cuts every parameter along its first dimension. DeepSpeed keeps master weights in flat tensors that cross parameter
boundaries; the optimizer's state is keyed by them. Its stages 0 to 2 and the bf16 wrapper of stage 1 are read through
the fragment addresses that DeepSpeed links to every parameter, stage 3 through its table of gradient positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from videotrain_trainer.sharded_state import Piece, Quantity, numel, pack

MOMENTS: tuple[Quantity, ...] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Run:
    """Elements of one parameter in a flat master tensor."""

    parameter: str
    start: int
    """First element in the flattened parameter."""
    length: int
    flat: int
    """Number of the flat tensor."""
    offset: int
    """First element in the flat tensor."""


@dataclass(frozen=True)
class _Segment:
    """Elements that are neighbours in a flat tensor and in the packed vector; usually all of a rank's."""

    flat: int
    offset: int
    packed: int
    length: int


def _segments(runs: Sequence[Run]) -> list[_Segment]:
    out: list[_Segment] = []
    packed = 0
    for run in runs:
        last = out[-1] if out else None
        if last is not None and last.flat == run.flat and last.offset + last.length == run.offset:
            out[-1] = _Segment(last.flat, last.offset, last.packed, last.length + run.length)
        else:
            out.append(_Segment(run.flat, run.offset, packed, run.length))
        packed += run.length
    return out


class Shards:
    """State of one rank.

    Args:
        shapes: every parameter of the model.
        masters: tensors that the optimizer's state is keyed by; float32.
        runs: what lies where in them.
        saved: which of the runs this rank writes; all of them unless ranks hold copies.
        optimizer: the AdamW inside the engine.
        keep_average: keep a moving average of the weights.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        masters: Sequence[Tensor],
        runs: Sequence[Run],
        saved: Sequence[Run],
        optimizer: torch.optim.Optimizer,
        *,
        keep_average: bool,
    ) -> None:
        self.shapes = dict(shapes)
        self.masters = list(masters)
        self.averages = [master.detach().clone() for master in masters] if keep_average else []
        self.quantities: tuple[Quantity, ...] = ("master", *MOMENTS, *(("ema",) if keep_average else ()))
        self.device = self.masters[0].device
        self._optimizer = optimizer
        self._runs = list(runs)
        self._saved_segments, self._held_segments = _segments(saved), _segments(runs)
        self.saved: list[Piece] = pack((run.parameter, run.start, run.length) for run in saved)
        self.held: list[Piece] = pack((run.parameter, run.start, run.length) for run in runs)
        self._start_moments()

    @torch.no_grad()
    def read(self, quantity: Quantity, out: Tensor) -> None:
        """Copy the `saved` elements into a float32 vector on the host."""
        flats = self._flats(quantity)
        for part in self._saved_segments:
            source = flats[part.flat][part.offset : part.offset + part.length]
            out[part.packed : part.packed + part.length].copy_(source, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def write(self, quantity: Quantity, values: Tensor, start: int = 0) -> None:
        """Take `held` elements, from `start` of the packed vector on, from a vector on the host."""
        flats = self._flats(quantity)
        for part in self._held_segments:
            low, high = max(part.packed, start), min(part.packed + part.length, start + len(values))
            if low < high:
                first = part.offset + low - part.packed
                flats[part.flat][first : first + high - low].copy_(values[low - start : high - start])

    @torch.no_grad()
    def write_full(self, weights: Mapping[str, Tensor]) -> None:
        """Take master weights, and the moving average, from whole parameters."""
        for run in self._runs:
            values = weights[run.parameter].reshape(-1)[run.start : run.start + run.length]
            for flats in (self._flats("master"), self._flats("ema")):
                if flats:
                    flats[run.flat][run.offset : run.offset + run.length].copy_(values)

    def set_optimizer_step(self, step: int) -> None:
        """Tell the optimizer how many steps its moments have seen; it corrects their bias by it."""
        for master in self.masters:
            self._optimizer.state[master]["step"].fill_(float(step))

    def _flats(self, quantity: Quantity) -> list[Tensor]:
        if quantity == "ema":
            return [average.view(-1) for average in self.averages]
        if quantity == "master":
            return [master.detach().view(-1) for master in self.masters]
        return [self._optimizer.state[master][quantity].view(-1) for master in self.masters]

    def _start_moments(self) -> None:
        for master in self.masters:
            zeros = {name: _zeros_like(master) for name in MOMENTS}
            step = torch.zeros((), dtype=torch.float32, device=master.device)
            self._optimizer.state[master] = {"step": step, **zeros}


def _zeros_like(master: Tensor) -> Tensor:
    """Zeros beside a master tensor. Those on the CPU take memory only once they are written: a start writes none."""
    if master.device.type != "cpu":
        return torch.zeros_like(master, requires_grad=False)
    return torch.from_numpy(np.zeros(tuple(master.shape), dtype=np.float32))


def replicated(names: Mapping[Any, str]) -> tuple[list[Tensor], list[Run], list[Run]]:
    """Stage 0: every rank holds every parameter; each writes every world-size-th one."""
    parameters = list(names)
    runs = [Run(names[p], 0, p.numel(), number, 0) for number, p in enumerate(parameters)]
    return parameters, runs, runs[dist.get_rank() :: dist.get_world_size()]


def partitioned(engine: Any, names: Mapping[Any, str]) -> tuple[list[Tensor], list[Run]]:
    """Stages 1 and 2: flat partitions of all parameters, one per parameter group."""
    masters = [group["params"][0] for group in engine.basic_optimizer.param_groups]
    runs = []
    for parameter, name in names.items():
        mapping = parameter._hp_mapping
        if mapping is not None:
            low, high = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
            runs.append(Run(name, low.start, low.numel, mapping.param_group_index, high.start))
    return masters, runs


def sliced(engine: Any, names: Mapping[Any, str]) -> tuple[list[Tensor], list[Run]]:
    """Stage 3: every parameter is cut into world-size equal slices, the last ones padded."""
    optimizer, rank = engine.optimizer, dist.get_rank()
    runs = []
    for parameter, name in names.items():
        flat, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * length
        runs.append(Run(name, start, max(0, min(length, parameter.ds_numel - start)), flat, offset))
    return list(optimizer.fp32_partitioned_groups_flat), [run for run in runs if run.length]


def row_runs(shapes: Mapping[str, tuple[int, ...]], masters: Sequence[Tensor], rank: int, size: int) -> list[Run]:
    """FSDP: every parameter is cut into blocks of equally many rows, the last ones shorter or empty.

    Args:
        shapes: every parameter of the model.
        masters: this rank's block of each, in the same order.
        rank: of this process.
        size: of the world.
    """
    runs = []
    for number, ((name, shape), master) in enumerate(zip(shapes.items(), masters, strict=True)):
        rows, width = -(-shape[0] // size), numel(shape[1:])
        runs.append(Run(name, rank * rows * width, master.numel(), number, 0))
    return [run for run in runs if run.length]
