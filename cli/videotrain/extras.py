"""What some commands need beyond the light ones, and how a user gets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from videotrain.errors import UsageError

Extra = Literal["local", "cluster"]
INSTALL: Final[dict[Extra, str]] = {
    "local": "pip install ./api ./operator ./trainer './cli[local]'",
    "cluster": "pip install ./api ./operator './cli[cluster]'",
}
"""What to type in the root of the repository. The names alone would not do: no index has to have them."""


@contextmanager
def brought_by(extra: Extra) -> Iterator[None]:
    """Import the modules of a command that works only with an extra of this distribution.

    Raises:
        UsageError: a library is missing; the message says how to install what the command needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "videotrain"):
            raise
        raise UsageError(needs(extra, f"the Python package {missing}")) from error


def needs(extra: Extra, what: str, command: str | None = None) -> str:
    """Sentence for a user who has not installed what a command needs; the one with the extra's name if it is None."""
    return (
        f"`videotrain {command or extra}` needs {what}, which is not installed. The extra videotrain[{extra}] brings "
        f"all that it needs; in the root of the repository: {INSTALL[extra]}"
    )
