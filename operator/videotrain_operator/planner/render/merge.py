"""Strategic merge of a pod template patch: maps merge, named lists merge by name, other lists are replaced."""

from __future__ import annotations

import copy
from typing import Any


def strategic_merge(base: Any, patch: Any) -> Any:
    """`base` with `patch` laid over it; a null in the patch removes a field. Neither is changed."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = {key: value for key, value in base.items() if key not in patch}
        for key, value in patch.items():
            if value is not None:
                merged[key] = strategic_merge(base.get(key), value)
        return merged
    if _named(base) and _named(patch):
        return _merge_named(base, patch)
    return copy.deepcopy(patch)


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "name" in v for v in value)


def _merge_named(base: list[dict[str, Any]], patch: list[dict[str, Any]]) -> list[Any]:
    patches = {item["name"]: item for item in patch}
    kept = [strategic_merge(item, patches.pop(item["name"], {})) for item in base]
    return kept + [copy.deepcopy(item) for item in patches.values()]
