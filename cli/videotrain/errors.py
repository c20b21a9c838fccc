"""Errors of the command line that users meet."""

from __future__ import annotations

import sys

EXIT_USAGE = 2
"""A wrong command line or manifest."""


class UsageError(Exception):
    """Something in the command line that argparse cannot check; the message is for the user."""


def refuse(error: Exception, file: object) -> int:
    """Tell on standard error that a command line or manifest is refused, and why.

    Args:
        error: UsageError, ManifestFileError or ManifestError.
        file: the manifest, for the problems of a ManifestError.

    Returns:
        Exit code.
    """
    # Here, so that help and a wrong command line do not wait for pydantic.
    from videotrain_api.schema import ManifestError

    lines = [str(error)]
    if isinstance(error, ManifestError):
        lines = [f"{file}: the manifest is refused:", *(f"  {problem}" for problem in error.problems)]
    sys.stderr.write("\n".join([f"videotrain: {lines[0]}", *lines[1:], ""]))
    return EXIT_USAGE
