"""`videotrain profile`: ask a local run for a trace of its next steps."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from videotrain.embedded.database import DATABASE_FILE
from videotrain.errors import UsageError
from videotrain.files import PROFILE_REQUEST, replace_file
from videotrain_api.resource.profiles import parse_profile


def ask_for_profile(workdir: Path, steps: str, ranks: str) -> int:
    """Leave a request where the session of the run looks for it.

    Args:
        workdir: of `videotrain local`.
        steps: how many steps to trace.
        ranks: which ranks, separated by commas.

    Returns:
        Exit code.

    Raises:
        UsageError: the folder holds no run, or the request is not allowed.
    """
    if not (workdir / DATABASE_FILE).is_file():
        raise UsageError(f"{workdir}: there is no {DATABASE_FILE} here; give the --workdir of `videotrain local`")
    text = f"steps={steps} ranks={ranks} id={secrets.token_hex(4)}"
    try:
        parse_profile(text)
    except ValueError as error:
        raise UsageError(f"--steps or --ranks: {error}") from None
    replace_file(workdir / PROFILE_REQUEST, text)
    sys.stdout.write(
        f"asked; the run takes it up while it trains, and `videotrain get --workdir {workdir}` shows where it is\n"
    )
    return 0
