"""One rank's work of the 11B recipe on one H200, for every row of the published throughput tables.

    python benchmarks/rank_replica.py --out benchmarks/results/rank-replica-DATE.json    one H200, under 8 minutes
    python benchmarks/rank_replica.py --tiny --out tiny.json                             any CPU, seconds; its form only

Measured are the trainer's own model, recomputation, compiled blocks and choice of attention: (1) the ceilings of matrix
products and attention at the model's shapes, (2) one block of each kind by row and way, (3) the whole model with an
eighth of the optimizer for two rows. A rank of a group that shares sequences copies on the device what would go over
the wire. What ranks would wait for is modelled, in fields that begin with `modelled_` and in no others.

The file is written after each part, and parts that no time is left for are named in `left_out`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as workers have it; read when torch loads

import torch
from replica import ceilings
from replica.blocks import WAYS, chosen_ways, local_exchange, time_blocks, time_edges
from replica.measure import Clock, machine
from replica.rows import Sizes, sizes
from replica.verdicts import verdicts
from replica.whole import time_whole
from replica.wire import forecast

from videotrain_trainer.networks.attention_kernels import attention_case, attention_kernel
from videotrain_trainer.parallel import activation

SECONDS = 420
FOR_BLOCKS, FOR_A_WHOLE_MODEL = 0.6, 70
"""Share of the time after which no more blocks are measured; seconds that one whole model takes."""
WHOLE = ("256px 5-33f", "768px 101-129f")
ABOUT = """Times are of one rank on one device. Fields that begin with modelled_ hold the modelled exchange, reduction \
and update of 8 GPUs around them (videotrain_api.cost.step_time, rates of videotrain_api.cost.rates.MID); no other \
field does. Latents are read encoded; the published rates do not say whether theirs were."""


class Report:
    """The result file, rewritten whenever a part is done."""

    def __init__(self, path: Path, device: torch.device, tiny: bool) -> None:
        self._path, self._began = path, time.monotonic()
        self.facts: dict[str, Any] = {
            "what": ABOUT,
            "date": datetime.now(UTC).date().isoformat(),
            "tiny": tiny,
            "machine": machine(device),
            "left_out": [],
        }

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def keep(self, part: str, found: Any) -> None:
        """Add a part."""
        self.facts[part] = found
        self.facts["seconds"] = round(self.seconds, 1)
        self._path.write_text(json.dumps(self.facts, indent=1) + "\n")
        print(f"{part}: after {self.seconds:.0f} s", flush=True)

    def leave_out(self, part: str) -> None:
        """Say that no time was left for a part."""
        self.facts["left_out"].append(part)


def row_times(about: Sizes, blocks: Iterable[dict[str, Any]], edges: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A micro-batch of each row and way: all blocks of both kinds and the edges, and the modelled step around it."""
    found = {(one["row"], one["way"], one["kind"]): one.get("ms") for one in blocks}
    outside = {one["row"]: one["ms"] for one in edges}
    lines = []
    for row in about.rows:
        for way in WAYS:
            double, single = (found.get((row.name, way.name, kind)) for kind in ("double", "single"))
            if double is None or single is None or row.name not in outside:
                continue
            shape = about.shape
            milliseconds = shape.double_blocks * double + shape.single_blocks * single + outside[row.name]
            line = {"row": row.name, "way": way.name, "samples": row.samples, "degree": row.degree}
            line["micro_batch_s"] = milliseconds / 1e3
            lines.append(line | forecast(about, row, milliseconds / 1e3, way))
    return lines


def run(report: Report, about: Sizes, device: torch.device, seconds: float, clock: Callable[[int], Clock]) -> None:
    """All parts, until the time is over."""
    ways = chosen_ways(device, report.facts["tiny"])
    report.keep("products", list(ceilings.products(about, clock(8))))
    report.keep("attention", list(ceilings.attention(about, clock(4))))
    blocks = list(time_blocks(about, device, clock(5), ways, lambda: report.seconds > FOR_BLOCKS * seconds))
    report.keep("blocks", blocks)
    edges = list(time_edges(about, device, clock(5)))
    report.keep("edges", edges)
    report.keep("rows", row_times(about, blocks, edges))
    whole: list[dict[str, Any]] = []
    for row in (row for row in about.rows if row.recipe.published.name in WHOLE):
        if report.seconds > seconds - FOR_A_WHOLE_MODEL:
            report.leave_out(f"whole model, {row.name}")
            continue
        try:
            whole.append(time_whole(about, row, device, clock(2)))
        except torch.OutOfMemoryError as error:
            whole.append({"row": row.name, "error": str(error)[:200]})
        report.keep("whole", whole)
    expected = len(about.rows) * len(ways) * 2
    if len(blocks) < expected:
        report.leave_out(f"{expected - len(blocks)} of {expected} blocks")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and print; 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no part is begun any more")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and graphs that are not compiled to code")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        sys.stderr.write("rank_replica: no GPU; --tiny runs on a CPU\n")
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.tiny:
        activation.BACKEND = "eager"
        torch.set_num_threads(1)
    about, report = sizes(options.tiny), Report(options.out, device, options.tiny)
    warm_up, few = (2, 1) if device.type == "cuda" else (1, 2)

    def clock(repeats: int) -> Clock:
        return Clock(device, warm_up=warm_up, repeats=max(1, repeats // few))

    with attention_kernel("auto", attention_case(about.model, device, torch.bfloat16)) as kernel, local_exchange():
        report.keep("attention_kernel", kernel)
        run(report, about, device, options.seconds, clock)
    report.keep("stop_rules", verdicts(report.facts))
    if options.tiny:  # numbers of a tiny model on any device mean nothing
        return 0
    for line in report.facts["rows"]:
        print(
            f"{line['row']:18} {line['way']:24} micro-batch {line['micro_batch_s']:8.3f} s  modelled "
            f"{line['modelled_videos_per_s']:8.2f} videos/s of 8 ({line['modelled_gain']:.2f}x published)"
        )
    for verdict in report.facts["stop_rules"]:
        print(f"{'ok  ' if verdict['holds'] else 'STOP'} {verdict['rule']}: {verdict['measured']}. {verdict['then']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
