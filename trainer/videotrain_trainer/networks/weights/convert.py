"""From one published layout to another, without ever holding more than a group of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.layout_rules import Mapped, kept_values, towards_ours, towards_theirs
from videotrain_trainer.networks.weights.configuration import (
    check_same_model,
    configuration_metadata,
    stored_configuration,
)
from videotrain_trainer.networks.weights.files import Weights, open_weights
from videotrain_trainer.networks.weights.layouts import PICTURE_LAYOUTS, ModelConfig, Scheme, recognise, scheme, sizes
from videotrain_trainer.networks.weights.strict import check_fit
from videotrain_trainer.networks.weights.writer import Destination, Planned, write_weights
from videotrain_trainer.storage import ObjectStore

Progress = Callable[[int, int], None]
"""(bytes written, bytes in all)."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    tensors: int
    parameters: int
    bytes: int
    files: list[str]


def convert(
    source: str | Path,
    destination: Destination,
    from_layout: str,
    to_layout: str,
    *,
    config: ModelConfig | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    store: ObjectStore | None = None,
) -> Converted:
    """Write weights anew in another layout; `from_layout` to itself re-shards or casts.

    Args:
        source: path or URI of a file, an index or a folder.
        destination: file or folder.
        from_layout: of the source; see `layouts.LAYOUTS`.
        to_layout: to be written.
        config: the model that the source must hold; by default the one that its tensors describe.
        dtype: to cast to; as stored by default.
        progress: is told after every tensor.
        store: serves an s3:// source.

    Raises:
        ConfigError: the source is damaged, incomplete or of another layout; lists every tensor that does not fit.
    """
    weights = open_weights(source, store=store)
    layout = recognise(weights.shapes, weights.what, from_layout)
    if (layout in PICTURE_LAYOUTS) != (to_layout in PICTURE_LAYOUTS):
        raise ConfigError(
            f"{layout!r} and {to_layout!r}: a picture autoencoder has no kernels over time; start an autoencoder stage "
            "from it instead"
        )
    stored = stored_configuration(weights)
    if config is not None:
        known, model = config, "the preset"
    elif stored is not None:
        known, model = stored.config, f"the model of {stored.what}"
    else:
        known, model = sizes(weights.shapes, weights.what), "the model that its own tensors describe"
    old = scheme(layout, known)
    check_fit(old.theirs, weights.shapes, weights.what, model)
    check_same_model(known, weights)
    described = {} if config is None and stored is None else configuration_metadata(known)
    return _write(weights, old, scheme(to_layout, known), destination, described, dtype, progress)


def _write(
    weights: Weights,
    old: Scheme,
    new: Scheme,
    destination: Destination,
    described: dict[str, str],
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> Converted:
    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)

    ours = Mapped(towards_ours(old.rules, weights.metadata), read)
    theirs = Mapped(towards_theirs(new.rules), ours)
    plan = [Planned(name, _dtype(name, theirs, ours, weights, dtype), shape) for name, shape in new.theirs.items()]
    old_fields = {rule.kept for rule in old.rules}
    metadata = {key: value for key, value in weights.metadata.items() if key not in old_fields}
    metadata |= kept_values(new.rules, ours) | described
    total, done = sum(planned.length for planned in plan), 0

    def tell(length: int) -> None:
        nonlocal done
        done += length
        if progress:
            progress(done, total)

    files = write_weights(destination, plan, theirs, metadata, tell)
    parameters = sum(planned.length // planned.dtype.itemsize for planned in plan)
    return Converted(len(plan), parameters, total, files)


def _dtype(name: str, theirs: Mapped, ours: Mapped, weights: Weights, wanted: torch.dtype | None) -> torch.dtype:
    """Data type of an output: that of what it is made of."""
    sources = [source for our in theirs.inputs(name) for source in ours.inputs(our)]
    stored = reduce(torch.promote_types, [weights.dtype(source) for source in sources])
    return wanted if wanted is not None and stored.is_floating_point else stored
