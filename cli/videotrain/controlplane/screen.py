"""The live picture of a cluster of this machine."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from videotrain.controlplane.look import Look, NodeLook, PodLook, RunLook
from videotrain.wording import duration

PODS_SHOWN: Final = 16
_STYLES: Final = {
    "Running": "green", "Succeeded": "bold green", "Complete": "bold green", "Failed": "bold red",
    "Invalid": "bold red",
    "Pending": "yellow", "Terminating": "magenta", "Suspended": "yellow",
}  # fmt: skip


def render(look: Look | None, hint: str) -> RenderableType:
    """Draw one moment; None: the first look is still on its way."""
    parts: list[RenderableType] = []
    if look is not None:
        parts.append(_components(look))
        parts += [_nodes(look.nodes)] if look.nodes else []
        parts += [_runs(look.runs)] if look.runs else []
        parts += [_pods(look.pods)] if look.pods else []
    parts.append(Text(hint, style="dim"))
    return Panel(Group(*parts), title="videotrain cluster", title_align="left", border_style="bright_black")


def _components(look: Look) -> Text:
    text = Text()
    for name, serves in look.components.items():
        text.append("✔ " if serves else "✘ ", style="green" if serves else "bold red")
        text.append(f"{name}  ")
    return text


def _nodes(nodes: tuple[NodeLook, ...]) -> Table:
    table = _table("node", "", "GPUs in use", "pods")
    for node in nodes:
        state = Text("Ready", style="green") if node.ready else Text("NotReady", style="bold red")
        table.add_row(node.name, state, f"{node.gpus_used} of {node.gpus}", str(node.pods))
    return table


def _runs(runs: tuple[RunLook, ...]) -> Table:
    table = _table("run", "phase", "stage", "step")
    for run in runs:
        table.add_row(f"{run.namespace}/{run.name}", _phase(run.phase), run.stage, str(run.step or ""))
    return table


def _pods(pods: tuple[PodLook, ...]) -> Table:
    table = _table("pod", "phase", "node", "age")
    newest = sorted(pods, key=lambda pod: pod.age_seconds)
    for pod in newest[:PODS_SHOWN]:
        table.add_row(f"{pod.namespace}/{pod.name}", _phase(pod.phase), pod.node, duration(pod.age_seconds))
    if len(pods) > PODS_SHOWN:
        table.add_row(Text(f"and {len(pods) - PODS_SHOWN} older ones", style="dim"))
    return table


def _phase(phase: str) -> Text:
    return Text(phase, style=_STYLES.get(phase, ""))


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table
