"""What two worlds must have in common that trained the same stage, however often they were stopped."""

from __future__ import annotations

from pathlib import Path

from support.training_worlds import commit_of, difference, final_weights, trained_ids


def assert_same_training(folder: Path, yardstick: Path, rounding: float, step: int = 8) -> None:
    """Same samples in the same order, each once, and weights that differ by less than `rounding`."""
    manifest, expected = commit_of(folder, step), commit_of(yardstick, step)
    assert manifest.order_sha256 == expected.order_sha256
    ids = trained_ids(folder, manifest)
    assert ids == trained_ids(yardstick, expected)
    assert manifest.samples == expected.samples == len(ids)
    assert difference(final_weights(folder), final_weights(yardstick)) < rounding
