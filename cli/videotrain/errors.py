"""Errors of the command line that users meet."""

from __future__ import annotations


class UsageError(Exception):
    """Something in the command line that argparse cannot check; the message is for the user."""
