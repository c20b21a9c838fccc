"""Videos of fixed prompts, drawn between steps with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from videotrain_trainer.parallel.peers import WorldPeers


class DrawnSamples(NamedTuple):
    """What was drawn after a step."""

    videos: int
    uri: str
    """Of their VideosIndex."""


@runtime_checkable
class DrawsSamples(Protocol):
    """An objective that draws while it is trained."""

    @property
    def draw_every(self) -> int | None:
        """Steps between drawings; None for none."""

    def draw_samples(self, model: Callable[..., Any], peers: WorldPeers, step: int) -> DrawnSamples | None:
        """Draw and store what is not there yet; None if the world was asked to stop meanwhile. Collective."""
