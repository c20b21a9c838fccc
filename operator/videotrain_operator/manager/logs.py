"""Log lines: JSON for machines or text for people, with the run's namespace/name where there is one."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

_RUN: Final = re.compile(r"\brun=(\S+/\S+)")


class _RunFilter(logging.Filter):
    """Takes `run=namespace/name` out of the message into a field of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        found = _RUN.search(record.getMessage())
        if found:
            record.run = found[1]
        return True


def set_up_logging(form: str, level: str) -> None:
    """Log to standard error.

    Args:
        form: json or text.
        level: least severe level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RunFilter())
    renamed: dict[str, Any] = {"asctime": "time", "levelname": "level", "name": "logger"}
    if form == "json":
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=renamed))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
