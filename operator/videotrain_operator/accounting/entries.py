"""Closed windows of pods as a ledger lists them, what older ones are folded into, and the sums of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from videotrain_api.billing.document import without_numbers
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Bucket
from videotrain_operator.accounting.stored_ledger import StageTotals, instant

ENTRIES_LISTED: Final = 240
"""Closed entries that the document lists, at about 400 bytes each; a config map holds 1 MiB, and a pod takes 142."""
GROUPS_LISTED: Final = 120
"""Groups of older entries, of one node, stage, price and month each; beyond it nodes, then months are put together."""
GENERATIONS_LISTED: Final = 64
"""Newest generations of which a ledger tells what each cost once its entries are folded."""
_KEYS: Final = (
    ("node", "stage", "gpus", "price", "month"),
    ("stage", "gpus", "price", "month"),
    ("stage", "gpus"),
    (),
)
"""By which groups are put together, until they are few enough."""
_AMOUNTS: Final = ("gpuMicroseconds", "micros", "waste")


@dataclass
class Totals:
    """Sums of a ledger; each of them has every micro."""

    gpu_microseconds: dict[str, int] = field(default_factory=dict)
    """By bucket."""
    micros: dict[str, int] = field(default_factory=dict)
    """By bucket."""
    waste: dict[str, int] = field(default_factory=dict)
    """Micros of all buckets but the productive one by cause, see `attribution.cause_of`."""
    generations: dict[int, int] = field(default_factory=dict)
    """Micros by the generation whose roster was the newest."""
    stages: dict[str, StageTotals] = field(default_factory=dict)
    months: dict[str, int] = field(default_factory=dict)
    """Micros by calendar month in UTC, such as `2026-11`."""
    causes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Micros by stage, and in each by what was productive and by plain cause of waste."""

    @classmethod
    def of_folded(cls, folded: Mapping[str, Any]) -> Totals:
        """What is folded in a ledger; the dictionaries are the caller's."""
        return cls(
            dict(folded["gpuMicroseconds"]),
            dict(folded["micros"]),
            dict(folded.get("waste", {})),
            {int(number): micros for number, micros in folded.get("generations", {}).items()},
            {name: StageTotals(*known) for name, known in folded.get("stages", {}).items()},
            dict(folded.get("months", {})),
            {stage: dict(causes) for stage, causes in folded.get("causes", {}).items()},
        )

    def add(
        self,
        stage: str,
        generation: int,
        month: str,
        node_us: int,
        gpu_us: Mapping[str, int],
        micros: Mapping[str, int],
        waste: Mapping[str, int],
        times: int = 1,
    ) -> None:
        """So many windows of pods that amount to the same; `node_us` is their length."""
        _add(self.gpu_microseconds, gpu_us, times)
        _add(self.micros, micros, times)
        _add(self.waste, waste, times)
        spent, known = times * sum(micros.values()), self.stages.get(stage, StageTotals())
        self.generations[generation] = self.generations.get(generation, 0) + spent
        self.months[month] = self.months.get(month, 0) + spent
        causes, productive = self.causes.setdefault(stage, {}), Bucket.PRODUCTIVE.value
        _add(causes, {productive: micros.get(productive, 0)}, times)
        _add(causes, without_numbers(waste), times)
        held = known.gpu_microseconds + times * sum(gpu_us.values())
        self.stages[stage] = StageTotals(known.node_microseconds + times * node_us, held, known.micros + spent)

    def add_entries(self, entries: Iterable[Json]) -> None:
        """One of a version that noted no stage is of none."""
        # A pass does this for each of hundreds, so those of one stage, generation and month are added up first.
        held: dict[tuple[str, int, str], int] = {}
        sums: dict[tuple[str, int, str], tuple[dict[str, int], dict[str, int], dict[str, int]]] = {}
        for entry in entries:
            key = (entry.get("stage", ""), entry["generation"], entry["from"][:7])
            gpu_us, gpus = entry["gpuMicroseconds"], entry["gpus"]
            if key not in sums:
                held[key], sums[key] = 0, ({}, {}, {})
            held[key] += sum(gpu_us.values()) // gpus if gpus else _length(entry)
            for total, amounts in zip(sums[key], (gpu_us, entry["micros"], entry.get("waste", {})), strict=True):
                for name, amount in amounts.items():
                    total[name] = total.get(name, 0) + amount
        for key, parts in sums.items():
            self.add(*key, held[key], *parts)

    def to_folded(self) -> Json:
        """As a ledger keeps them: bounded, whatever the number of generations."""
        newest = set(sorted(self.generations)[-GENERATIONS_LISTED:])
        waste: dict[str, int] = {}
        for cause, micros in self.waste.items():
            plain, _, number = cause.partition("/")
            name = cause if number and int(number) in newest else plain
            waste[name] = waste.get(name, 0) + micros
        return {
            "gpuMicroseconds": self.gpu_microseconds,
            "micros": self.micros,
            "waste": waste,
            "generations": {str(number): self.generations[number] for number in sorted(newest)},
            "stages": {name: list(totals) for name, totals in self.stages.items()},
            "months": dict(sorted(self.months.items())),
            "causes": self.causes,
        }


def fold(entries: list[Json], folded: Json) -> None:
    """Keep the newest entries; add the others to the folded totals and to groups. Both arguments are changed."""
    surplus = entries[: max(0, len(entries) - ENTRIES_LISTED)]
    if not surplus:
        return
    totals = Totals.of_folded(folded)
    totals.add_entries(surplus)
    folded |= totals.to_folded()
    groups = [dict(group) for group in folded.get("groups", [])]
    for entry in surplus:
        folded["entries"] += 1
        folded["estimated"] = folded["estimated"] or entry["estimated"]
        folded["until"] = max(folded.get("until") or entry["to"], entry["to"], key=instant)
        groups.append(_alone(entry))
    folded["groups"] = _bounded(groups)
    del entries[: len(surplus)]


def _alone(entry: Json) -> Json:
    """A group of one entry."""
    return {
        "node": entry.get("node", ""),
        "stage": entry.get("stage", ""),
        "gpus": entry["gpus"],
        "price": entry["price"],
        "from": entry["from"],
        "to": entry["to"],
        "estimated": entry["estimated"],
        "nodeMicroseconds": _length(entry),
        "gpuMicroseconds": entry["gpuMicroseconds"],
        "micros": entry["micros"],
        "waste": without_numbers(entry.get("waste", {})),
    }


def _bounded(groups: list[Json]) -> list[Json]:
    """Groups that are alike as one; see `_KEYS`."""
    for keys in _KEYS:
        found: dict[tuple[Any, ...], Json] = {}
        for group in groups:
            key = tuple(group["to"][:7] if name == "month" else group[name] for name in keys)
            found[key] = _together(found[key], group) if key in found else group
        groups = list(found.values())
        if len(groups) <= GROUPS_LISTED:
            break
    return groups


def _together(one: Json, other: Json) -> Json:
    kept = {name: one[name] if one[name] == other[name] else "" for name in ("node", "stage", "price")}
    sums = {}
    for name in _AMOUNTS:
        sums[name] = dict(one[name])
        _add(sums[name], other[name])
    return (
        kept
        | sums
        | {
            "gpus": one["gpus"] if one["gpus"] == other["gpus"] else 0,
            "from": min(one["from"], other["from"], key=instant),
            "to": max(one["to"], other["to"], key=instant),
            "estimated": one["estimated"] or other["estimated"],
            "nodeMicroseconds": one["nodeMicroseconds"] + other["nodeMicroseconds"],
        }
    )


def _length(entry: Json) -> int:
    return instant(entry["to"]) - instant(entry["from"])


def _add(totals: dict[str, int], more: Mapping[str, int], times: int = 1) -> None:
    for name, amount in more.items():
        totals[name] = totals.get(name, 0) + amount * times
