"""Golden files: written on request, so that the diff is the review."""

from __future__ import annotations

import os
from typing import Any, Final

import yaml

REWRITE: Final = os.environ.get("VIDEOTRAIN_REWRITE_GOLDEN") == "1"
"""Set by `tox -e golden`."""


class _Dumper(yaml.SafeDumper):
    """Without anchors: what comes twice is written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(document: Any) -> str:
    """YAML for people: own key order, no anchors."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
