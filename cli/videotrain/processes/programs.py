"""Programs that this command starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

TRAINER: Final = "videotrain-trainer"


def search_path(environment: Mapping[str, str] = os.environ) -> str:
    """PATH with the folder of this interpreter in front.

    Console scripts lie beside the interpreter, also when the virtual environment is not activated.
    """
    return os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])


def find_program(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where a program is; None if it is neither beside this interpreter nor on PATH."""
    return shutil.which(name, path=search_path(environment))
