"""`videotrain sample`: pictures and videos from the models of a finished run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from videotrain.errors import UsageError
from videotrain.extras import needs
from videotrain.processes.programs import TRAINER, find_program
from videotrain.results.folder import MODELS
from videotrain.results.models import drawing_flags, folder_of, model_files


def sample(workdir: Path | None, results: Path | None, flags: Sequence[str]) -> int:
    """Draw with the trainer's own command, by the sizes and settings of the run unless the flags say otherwise.

    Args:
        workdir: of `local`.
        results: a folder of results instead.
        flags: of `videotrain-trainer sample`.

    Returns:
        Its exit code.

    Raises:
        UsageError: there are no such models, or the trainer is not installed.
    """
    folder = folder_of(workdir, results)
    models = model_files(folder)
    command = ["sample", "--config", str(folder / MODELS)]
    command += ["--model-weights", models.transformer, "--autoencoder-weights", models.autoencoder]
    command += [*drawing_flags(folder), *flags]
    if not any(flag.partition("=")[0] == "--output" for flag in flags):
        # Of its own for each set of flags: the same command goes on, another one overwrites nothing.
        command += ["--output", str(folder / "drawn" / hashlib.sha256("\0".join(flags).encode()).hexdigest()[:8])]
    return run_trainer("sample", command)


def run_trainer(command: str, arguments: Sequence[str]) -> int:
    """Run a command of the trainer, with this terminal; its exit code.

    Raises:
        UsageError: the trainer is not installed.
    """
    program = find_program(TRAINER)
    if program is None:
        raise UsageError(needs("local", f"the program {TRAINER} beside {sys.executable} or on PATH", command))
    sys.stdout.flush()
    return subprocess.run([program, *arguments], check=False).returncode
