"""Objects as `-o` asks for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal

import yaml

from videotrain_api.schema import Json
from videotrain_api.vocabulary import GROUP, KIND

Output = Literal["table", "json", "yaml", "name"]
LITERAL_FROM: Final = 100
"""Strings from this length on, such as a frozen stage configuration, are written as blocks."""


_Dumper: Final[Any] = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper


class _ReadableDumper(_Dumper):  # type: ignore[misc]
    """Writes objects in their own key order and long strings as blocks, and never uses aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - signature of PyYAML
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value or len(value) >= LITERAL_FROM else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_ReadableDumper.add_representer(str, _string)


def as_yaml(document: Json) -> str:
    """One YAML document."""
    return yaml.dump(document, Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True)


def write_runs(runs: Sequence[Json], output: Output) -> None:
    """Write runs to standard output: one as it is, several as a Kubernetes List, or their names.

    Args:
        runs: VideoTrainingRuns.
        output: `json`, `yaml` or `name`.
    """
    if output == "name":
        for run in runs:
            sys.stdout.write(f"{KIND.lower()}.{GROUP}/{run['metadata']['name']}\n")
        return
    # Who wrote which field fills pages, and nobody asked.
    shown = [run | {"metadata": {k: v for k, v in run["metadata"].items() if k != "managedFields"}} for run in runs]
    document = shown[0] if len(shown) == 1 else {"apiVersion": "v1", "kind": "List", "items": shown}
    if output == "yaml":
        sys.stdout.write(as_yaml(document))
    else:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
