"""Check measured ratios against the ranges of ranges.yaml.

    python benchmarks/check_ranges.py                   rows that take seconds
    python benchmarks/check_ranges.py --all             also those that take minutes
    python benchmarks/check_ranges.py planner-1024-p99  only the rows named (`*` stands for anything)
    python benchmarks/check_ranges.py --take 8 ROW...   measure so many times, and print mean and spread for ranges.yaml

Exit code: 0 if every row lies in its range, 1 if one does not, 2 for a row that does not exist.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

RANGES = Path(__file__).with_name("ranges.yaml")
TRIES = 3
"""A row is measured again while it lies outside: other work on the machine only ever makes a ratio worse."""
Words = Annotated[str, StringConstraints(min_length=3)]


class Closed(BaseModel):
    """A part of ranges.yaml; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Taken(Closed):
    """When and where a row was measured."""

    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    hardware: Words
    versions: dict[str, str]


class Row(Closed):
    """One bound that is kept."""

    what: Words
    """What ours does."""
    peer: Words
    """What the peer does, in turns with ours."""
    unit: Words
    better: Literal["lower", "higher"]
    mean: float = Field(gt=0)
    """Of `runs` measurements."""
    spread: float = Field(ge=0)
    """Largest less smallest of them."""
    runs: int = Field(ge=1)
    margin: float = Field(gt=0, lt=1)
    """How much worse than the mean is still allowed, as a part of it: noise, other machines, small changes."""
    slow: bool = False
    """It takes minutes, or needs a server: measured with --all, or by name."""
    remedy: Words
    """Where to look first when it lies outside."""
    taken: Taken

    @property
    def bound(self) -> float:
        """The worst ratio that is allowed."""
        return self.mean * (1 + self.margin if self.better == "lower" else 1 - self.margin)

    def holds(self, ratio: float) -> bool:
        """Whether a measured ratio lies in the range."""
        return ratio <= self.bound if self.better == "lower" else ratio >= self.bound


class Result(Closed):
    """A row, measured."""

    row: str
    measured: float
    bound: float
    mean: float
    better: str
    unit: str
    holds: bool


def read_ranges(path: Path = RANGES) -> dict[str, Row]:
    """The rows by name.

    Raises:
        pydantic.ValidationError: a row lacks a key, or has one that is not known.
    """
    return {name: Row.model_validate(row) for name, row in yaml.safe_load(path.read_text())["rows"].items()}


def chosen(rows: Mapping[str, Row], patterns: Sequence[str], *, slow: bool) -> list[str]:
    """Names of the rows to measure.

    Raises:
        KeyError: a pattern fits no row.
    """
    if not patterns:
        return [name for name, row in rows.items() if slow or not row.slow]
    found = {pattern: fnmatch.filter(rows, pattern) for pattern in patterns}
    if missing := [pattern for pattern, names in found.items() if not names]:
        raise KeyError(f"no such row: {', '.join(missing)}; ranges.yaml has {', '.join(rows)}")
    return list(dict.fromkeys(name for names in found.values() for name in names))


def check(name: str, row: Row, measure: Callable[[], float]) -> Result:
    """Measure a row until it lies in its range, at most TRIES times; the best ratio counts."""
    ratios: list[float] = []
    while len(ratios) < TRIES and not (ratios and row.holds(ratios[-1])):
        ratios.append(measure())
    best = min(ratios) if row.better == "lower" else max(ratios)
    said = {"bound": round(row.bound, 3), "mean": row.mean, "better": row.better, "unit": row.unit}
    return Result(row=name, measured=round(best, 3), holds=row.holds(best), **said)


def table(results: Sequence[Result]) -> str:
    """The results for people."""
    width = max(len(result.row) for result in results)
    lines = [f"{'row':{width}}  measured     bound      mean  unit"]
    for one in results:
        bound = f"{'<=' if one.better == 'lower' else '>='} {one.bound:g}"
        verdict = "" if one.holds else "  OUTSIDE"
        lines.append(f"{one.row:{width}}  {one.measured:8.3f}  {bound:>9} {one.mean:9.3f}  {one.unit}{verdict}")
    return "\n".join(lines)


def advice(row: Row, result: Result) -> str:
    """What to do about a row that lies outside."""
    worst = f"at {'most' if row.better == 'lower' else 'least'} {result.bound:g}"
    return (
        f"\n{result.row}: {result.measured:g} {row.unit}, allowed {worst}.\n"
        f"  ours: {row.what}\n  peer: {row.peer}\n  {row.remedy}\n"
        "  If the change is meant, take the row anew: "
        f"`python benchmarks/check_ranges.py --take {row.runs} {result.row}` prints its lines of ranges.yaml."
    )


def take(name: str, measure: Callable[[], float], runs: int) -> str:
    """Lines for ranges.yaml from so many measurements."""
    ratios = [measure() for _ in range(runs)]
    spread = max(ratios) - min(ratios)
    return f"{name}:\n    mean: {statistics.mean(ratios):.3g}\n    spread: {spread:.2g}\n    runs: {runs}"


def main(arguments: Sequence[str] | None = None, measures: Mapping[str, Callable[[], float]] | None = None) -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure; all fast ones if there is none")
    parser.add_argument("--all", action="store_true", help="measure the slow rows, too")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--take", type=int, metavar="N", help="measure N times and judge nothing")
    options = parser.parse_args(arguments)
    if measures is None:
        import range_measures

        measures = range_measures.MEASURES
    rows = read_ranges()
    try:
        names = chosen(rows, options.rows, slow=options.all)
    except KeyError as error:
        sys.stderr.write(f"check_ranges: {error.args[0]}\n")
        return 2
    if options.take:
        for name in names:
            print(take(name, measures[name], options.take), flush=True)
        return 0
    results = [check(name, rows[name], measures[name]) for name in names]
    outside = [result for result in results if not result.holds]
    print(json.dumps([result.model_dump() for result in results], indent=1) if options.json else table(results))
    for result in outside:
        sys.stderr.write(advice(rows[result.row], result) + "\n")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
