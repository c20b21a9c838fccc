"""What a layout is: rules that tie groups of our tensors to groups of published ones, in both directions.

Our tensors are those of the models in this package under their default configuration: for an MMDiT separate q/k/v and
half-split rotary positions. A rule renames, splits, joins or permutes, so values come back bit by bit; the one kind
that merges (`kept`) stores what it merged in the file's metadata.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from safetensors.torch import load, save
from torch import Tensor

Make = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Shapes = Mapping[str, tuple[int, ...]]


def unchanged(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The transform of a rule that only renames."""
    return tensors


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Some of our tensors and what stands for them in a layout."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_theirs: Make = unchanged
    to_ours: Make = unchanged
    kept: str | None = None
    """Metadata field for our values where `to_theirs` loses some; None if it loses nothing."""
    by_rows: bool = False
    """Both transforms only put rows (all that shares a first index) into another order or another tensor, so that some
    rows can be made from some rows."""


@dataclass(frozen=True)
class Side:
    """One direction of a rule."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    make: Make
    by_rows: bool = False
    """See Rule."""

    def origins(self, output: str, rows: Sequence[int]) -> Tensor:
        """(rows of the output,) int64: which row of the inputs, counted through all of them, each one is.

        Only where the side works by rows.

        Args:
            output: one of them.
            rows: how many each input has.
        """
        ends = list(accumulate(rows))
        numbers = [torch.arange(end - count, end) for end, count in zip(ends, rows, strict=True)]
        return self.make(numbers)[self.outputs.index(output)]


@dataclass
class Mapped:
    """A layout's tensors computed from another's, group by group.

    Args:
        sides: of the rules, in the order of the outputs.
        read: gives an input.
    """

    sides: Sequence[Side]
    read: Callable[[str], Tensor]
    _of: dict[str, Side] = field(init=False)
    _held: tuple[Side, dict[str, Tensor]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._of = {name: side for side in self.sides for name in side.outputs}

    @property
    def names(self) -> list[str]:
        """Names of all tensors that can be made."""
        return list(self._of)

    def inputs(self, name: str) -> tuple[str, ...]:
        """What an output is made of."""
        return self._of[name].inputs

    def __call__(self, name: str) -> Tensor:
        """One output. The group of the last one is held, so that outputs asked for in order read each input once."""
        side = self._of[name]
        if self._held is None or self._held[0] is not side:
            self._held = None
            made = side.make([self.read(source) for source in side.inputs])
            self._held = side, dict(zip(side.outputs, made, strict=True))
        return self._held[1][name]


def towards_theirs(rules: Iterable[Rule]) -> list[Side]:
    """From our tensors to a layout's."""
    return [Side(rule.ours, rule.theirs, rule.to_theirs, rule.by_rows) for rule in rules]


def towards_ours(rules: Iterable[Rule], metadata: Mapping[str, str]) -> list[Side]:
    """From a layout's tensors to ours; values that metadata kept come back if the file still fits them."""
    return [Side(rule.theirs, rule.ours, _restoring(rule, metadata), rule.by_rows) for rule in rules]


def their_shapes(rules: Iterable[Rule], ours: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layout, by running its rules on tensors without memory."""
    mapped = Mapped(towards_theirs(rules), lambda name: torch.empty(ours[name], device="meta"))
    return {name: tuple(mapped(name).shape) for name in mapped.names}


def kept_values(rules: Iterable[Rule], read: Callable[[str], Tensor]) -> dict[str, str]:
    """Metadata for what the way to a layout would lose.

    Args:
        rules: of the layout.
        read: gives one of our tensors.
    """
    kept: dict[str, str] = {}
    for rule in rules:
        if rule.kept is not None:
            ours = [read(name) for name in rule.ours]
            back = rule.to_ours(rule.to_theirs(ours))
            if not all(torch.equal(a, b) for a, b in zip(ours, back, strict=True)):
                kept[rule.kept] = _encode(dict(zip(rule.ours, ours, strict=True)))
    return kept


def _restoring(rule: Rule, metadata: Mapping[str, str]) -> Make:
    stored = metadata.get(rule.kept) if rule.kept else None
    if stored is None:
        return rule.to_ours
    values = load(base64.b64decode(stored))
    if values.keys() != set(rule.ours):
        return rule.to_ours

    def restore(theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        # Whoever trained the file further changed what was merged; the kept values are then of no use.
        ours = [values[name].to(theirs[0].dtype) for name in rule.ours]
        same = all(torch.equal(a, b) for a, b in zip(rule.to_theirs(ours), theirs, strict=True))
        return ours if same else rule.to_ours(theirs)

    return restore


def _encode(tensors: dict[str, Tensor]) -> str:
    return base64.b64encode(save({name: tensor.contiguous() for name, tensor in tensors.items()})).decode()


def count(shapes: Shapes, pattern: str) -> int:
    """How many parts have tensors of a name: one more than the highest index that the pattern's group finds."""
    found = [int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))]
    return max(found, default=-1) + 1
