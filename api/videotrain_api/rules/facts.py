"""What the rules need to know about a run beyond its fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.resolve import uses_transformer
from videotrain_api.cost.flops import grid
from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError, Problem


@dataclass(frozen=True)
class Facts:
    """A run with its architectures; one that cannot be completed is None and its problems are listed."""

    run: VideoTrainingRun
    model: TransformerSpec | None
    autoencoder: AutoencoderSpec | None
    problems: tuple[Problem, ...]

    @property
    def pixels_per_token(self) -> int | None:
        """Grid of the clips in pixels, if both architectures are known (the autoencoder's alone without a model)."""
        if self.autoencoder is None:
            return None
        if self.model is None:
            return None if uses_transformer(self.run) else self.autoencoder.spatial_compression
        return grid(self.model, self.autoencoder)


def facts_of(run: VideoTrainingRun) -> Facts:
    """Complete the architectures of a run and keep what went wrong."""
    problems: list[Problem] = []
    model: TransformerSpec | None = None
    autoencoder: AutoencoderSpec | None = None
    try:
        autoencoder = complete_autoencoder(run.spec.autoencoder)
    except ManifestError as error:
        problems += error.problems
    try:
        model = complete_transformer(run.spec.model) if uses_transformer(run) else None
    except ManifestError as error:
        problems += error.problems
    return Facts(run, model, autoencoder, tuple(problems))


def shown(numbers: Iterable[int], most: int = 8) -> str:
    """The first numbers of a list, for a message."""
    items = list(numbers)
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
