"""`videotrain export`: the models of a finished run in a published layout."""

from __future__ import annotations

from pathlib import Path

from videotrain.commands.sample import run_trainer
from videotrain.results.models import folder_of, model_files


def export(workdir: Path | None, results: Path | None, layout: str, target: Path) -> int:
    """Write transformer and autoencoder with the trainer's own command.

    Args:
        workdir: of `local`.
        results: a folder of results instead.
        layout: `diffusers` or `open-sora-v2`.
        target: folder to write.

    Returns:
        Its exit code.

    Raises:
        UsageError: there are no such models, or the trainer is not installed.
    """
    models = model_files(folder_of(workdir, results))
    command = ["export", str(target), "--to", layout]
    command += ["--transformer", models.transformer, "--autoencoder", models.autoencoder]
    return run_trainer("export", command)
