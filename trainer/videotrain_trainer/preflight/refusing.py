"""How a run ends that something is wrong with, before it began."""

from __future__ import annotations

from collections.abc import Sequence

from videotrain_api.checks import Finding, wrong
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.errors import ConfigError, DataError, StorageDenied, StorageUnavailable, TrainerError

_RAISED: dict[ExitCode, type[TrainerError]] = {
    ExitCode.PERMISSION: StorageDenied,
    ExitCode.STORAGE: StorageUnavailable,
    ExitCode.CONFIG: ConfigError,
}
"""By the most lasting cause first: a store that denies access says nothing of what lies in it."""


def refuse(findings: Sequence[Finding]) -> None:
    """End the run before it begins, if it could not end well.

    Raises:
        TrainerError: something is wrong; all of it is told.
    """
    problems = wrong(findings)
    if not problems:
        return
    codes = {finding.code for finding in problems}
    kind = next((raised for code, raised in _RAISED.items() if code in codes), DataError)
    raise kind("; ".join(map(str, problems)))
