"""Draws docs/images/elasticity.png from the record of elasticity_story.py; needs matplotlib.

python benchmarks/figures/elasticity_timeline.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DOCS: Final = Path(__file__).parents[2] / "docs"
RECORD: Final = DOCS / "pictures" / "elasticity.json"
PICTURE: Final = DOCS / "images" / "elasticity.png"
COLORS: Final = {
    "productive": "#2f9e77",
    "starting": "#8fb8de",
    "restarting": "#f2a541",
    "draining": "#f7dc6f",
    "lost": "#d1495b",
    "stalled": "#7b4b94",
    "idle": "#c9ced6",
}
"""By bucket; checkpoint and dataStall are zero in this record, since its trainers never wait."""
INK: Final = "#22303c"
QUIET: Final = "#6b7785"
PAPER: Final = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


def draw(record: dict[str, Any]) -> None:
    """Write the picture."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.edgecolor": QUIET})
    figure, (lanes, steps, bill) = plt.subplots(
        3, 1, figsize=(13, 8.4), height_ratios=[4.4, 2.8, 0.9], constrained_layout=True
    )
    end = max(piece["to"] for pod in record["pods"] for piece in pod["pieces"])
    _lanes(lanes, record, end)
    _steps(steps, record, end)
    _bill(bill, record)
    figure.suptitle(
        "One run, four nodes of eight GPUs: what happens, what the planner decides, what it costs",
        x=0.01, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    figure.savefig(PICTURE, dpi=110, facecolor="white")


def _lanes(axes: Axes, record: dict[str, Any], end: float) -> None:
    """Who held which node when, and what for."""
    rows = {f"node-{index}": 3 - index for index in range(4)}
    for pod in record["pods"]:
        for piece in pod["pieces"]:
            axes.barh(
                rows[pod["node"]], piece["to"] - piece["from"], left=piece["from"], height=0.62,
                color=COLORS[piece["bucket"]], edgecolor="none",
            )  # fmt: skip
    for deed in record["deeds"]:
        row = rows.get(deed["node"])
        where = row + 0.33 if row is not None else 3.33
        axes.plot([deed["at"]], [where], marker="v", color=INK, markersize=7, clip_on=False, zorder=5)
        axes.text(deed["at"] + 5, where + 0.06, deed["what"], fontsize=9, va="bottom", zorder=5, bbox=PAPER)
    for item in record["generations"]:
        axes.axvline(item["from"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
        axes.text(
            item["from"] + 3, 4.0, f"generation {item['number']}\n{item['reason']}\n{item['nodes']} nodes",
            fontsize=9, va="bottom", fontweight="bold", linespacing=1.35,
        )  # fmt: skip
    axes.set_xlim(0, end + 8)
    axes.set_ylim(-0.5, 4.0)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=False, length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _steps(axes: Axes, record: dict[str, Any], end: float) -> None:
    """The step counter, its checkpoints, and how far it falls back."""
    parts: list[list[list[float]]] = [[]]
    for second, step in record["steps"]:
        if step is not None:
            parts[-1].append([second, step])
        elif parts[-1]:
            parts.append([])
    for part in filter(None, parts):
        axes.plot(*zip(*part, strict=True), color=COLORS["productive"], linewidth=2.2, solid_capstyle="round")
    axes.plot(*zip(*record["saved"], strict=True), "o", color=INK, markersize=5, zorder=5, label="checkpoint")
    for item in record["generations"]:
        axes.axvline(item["from"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        back = item["lostFromStep"]
        if back is not None and back < item["lastStep"]:
            at = item["to"] or end
            axes.annotate(
                "", xy=(at + 4, back), xytext=(at + 4, item["lastStep"]),
                arrowprops={"arrowstyle": "-|>", "color": COLORS["lost"], "linewidth": 1.8},
            )  # fmt: skip
            axes.text(
                at + 8, item["lastStep"] + 30, f"{item['lastStep'] - back} steps lost",
                color=COLORS["lost"], fontsize=9.5,
            )  # fmt: skip
    axes.set_xlim(0, end + 8)
    axes.set_ylim(0, record["spec"]["steps"] * 1.08)
    axes.set_ylabel("step")
    axes.set_xlabel("seconds", loc="right")
    axes.legend(loc="upper left", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bill(axes: Axes, record: dict[str, Any]) -> None:
    """The ledger: all held GPU time, by use."""
    total, left = sum(record["gpuSeconds"].values()), 0.0
    for bucket, color in COLORS.items():
        amount, money = record["gpuSeconds"][bucket], record["micros"][bucket] / 1e6
        axes.barh(0, amount, left=left, height=0.6, color=color)
        share = 100 * amount / total
        if share > 15:
            text = f"{bucket}  {share:.1f} %  ${money:.2f}"
            axes.text(left + amount / 2, 0, text, ha="center", va="center", color="white")
        left += amount
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=color, label=_label(record, bucket, total))
        for bucket, color in COLORS.items()
    ]
    axes.legend(
        handles=handles, ncols=len(handles), loc="upper left", bbox_to_anchor=(-0.006, -0.02), frameon=False,
        fontsize=9, handlelength=1.0, handleheight=1.0, columnspacing=1.6, borderpad=0,
    )  # fmt: skip
    axes.set_title(
        f"the ledger: {total / 3600:.2f} GPU-hours held, ${float(record['total']):.2f}", loc="left", fontsize=10.5
    )
    axes.set_xlim(0, total)
    axes.set_ylim(-0.35, 0.35)
    axes.axis("off")


def _label(record: dict[str, Any], bucket: str, total: float) -> str:
    return f"{bucket} {100 * record['gpuSeconds'][bucket] / total:.1f} %\n${record['micros'][bucket] / 1e6:.2f}"


if __name__ == "__main__":
    draw(json.loads(RECORD.read_text()))
