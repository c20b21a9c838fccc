"""`videotrain export`: the models of a finished run in a published layout, with a model card; also to the hub."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from videotrain.commands.sample import run_trainer
from videotrain.errors import UsageError
from videotrain.files import replace_file
from videotrain.results.card import ADAPTER_LAYOUT, CARD, CardChoices, model_card
from videotrain.results.folder import ADAPTER
from videotrain.results.models import folder_of, model_files
from videotrain_api.resource.locations import HUB_TARGET_FORM, hub_target


@dataclass(frozen=True)
class Push:
    """Where an export goes."""

    uri: str
    private: bool = False
    """Whether a repository that is made is private."""


def export(workdir: Path | None, results: Path | None, choices: CardChoices, target: Path, push: Push | None) -> int:
    """Write models and card with the trainer's own command; then push the folder, if that is asked for.

    Args:
        workdir: of `local`.
        results: a folder of results instead.
        choices: layout, licence and base model.
        target: folder to write.
        push: where it goes as well.

    Returns:
        The trainer's exit code.

    Raises:
        UsageError: there are no such models, the trainer is not installed, or `push` is no repository of models.
    """
    if push is not None:
        _check(push.uri)
    folder = folder_of(workdir, results)
    card = model_card(folder, choices)
    code = (
        _write_adapter(folder, target) if choices.layout == ADAPTER_LAYOUT else _write(folder, choices.layout, target)
    )
    if code:
        return code
    replace_file(target / CARD, card)
    sys.stdout.write(f"{target / CARD}\n")
    if push is None:
        return 0
    private = ["--private"] if push.private else []
    return run_trainer("export", ["push", str(target), push.uri, *private])


def _check(uri: str) -> None:
    """Before anything is written."""
    if hub_target(uri) is None:
        raise UsageError(f"--push {uri}: allowed: {HUB_TARGET_FORM}")


def _write(folder: Path, layout: str, target: Path) -> int:
    models = model_files(folder)
    command = ["export", str(target), "--to", layout]
    return run_trainer("export", [*command, "--transformer", models.transformer, "--autoencoder", models.autoencoder])


def _write_adapter(folder: Path, target: Path) -> int:
    source = folder / ADAPTER
    if not source.is_dir():
        raise UsageError(f"{source}: not there: no stage with train.lora is complete")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if (target / path.name).exists():
            raise UsageError(f"{target / path.name}: is there already; export to another folder")
        shutil.copyfile(path, target / path.name)
    sys.stdout.write(f"{target}: {', '.join(path.name for path in sorted(source.iterdir()))}\n")
    return 0
