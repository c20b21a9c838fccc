"""What does not fit: every tensor that is missing, left over or of another shape, with what was expected."""

from __future__ import annotations

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.layout_rules import Shapes
from videotrain_trainer.networks.weights.files import listed


def check_fit(expected: Shapes, found: Shapes, what: str, model: str) -> None:
    """Compare a file with a model.

    Args:
        expected: names and shapes that the model has, in the file's layout.
        found: what the file has.
        what: the file, for messages.
        model: what it was compared with, and where that is set.

    Raises:
        ConfigError: they differ; lists how.
    """
    problems = misfits(expected, found)
    if problems:
        raise ConfigError(f"{what}: {len(problems)} of {len(expected)} tensors do not fit {model}:{listed(problems)}")


def misfits(expected: Shapes, found: Shapes) -> list[str]:
    """One line for every tensor that does not fit."""
    missing = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    unexpected = [f"unexpected: {name} {list(shape)}" for name, shape in found.items() if name not in expected]
    shapes = [
        f"misshapen: {name} is {list(found[name])} in the file, {list(shape)} in the model{_hint(found[name], shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    return missing + unexpected + shapes


def _hint(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return " (transposed)" if len(found) > 1 and tuple(found[::-1]) == tuple(expected) else ""
