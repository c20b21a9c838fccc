"""Strategic merge of the pod template: what `kubectl patch` does with a pod, apart from two kindnesses.

Tolerations are appended, so that those for lost nodes stay; and an item that names another kind of source (a volume's
claim instead of its emptyDir, an env's valueFrom instead of its value) replaces the old source instead of joining it.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from videotrain_api.rules.template import APPENDED, MERGE_KEYS, PATCH, RETAIN

ONE_OF: Final = {"volumes": ("name",), "env": ("name",)}
"""Lists whose items are unions: beside these fields an item has one member only."""
Item = dict[str, Any]


def strategic_merge(base: Any, patch: Any, field: str = "") -> Any:
    """`base` with `patch` laid over it. Neither is changed.

    Args:
        base: JSON data.
        patch: what to change: null removes a field, `$patch: delete` the mapping in which it stands, `$patch: replace`
            drops what was there, `$retainKeys` all fields that it does not list.
        field: name of the field that both are the value of; it decides how lists merge.
    """
    if isinstance(patch, dict):
        return _merge_mappings(base if isinstance(base, dict) else {}, patch)
    if isinstance(patch, list) and field in MERGE_KEYS:
        return _merge_items(base if isinstance(base, list) else [], patch, field)
    if isinstance(patch, list) and field in APPENDED:
        known = base if isinstance(base, list) else []
        return known + [copy.deepcopy(item) for item in patch if item not in known]
    return copy.deepcopy(patch)


def _merge_mappings(base: Item, patch: Item) -> Item:
    kept = {} if patch.get(PATCH) == "replace" else dict(base)
    for key, value in patch.items():
        if key in (PATCH, RETAIN):
            continue
        if value is None or (isinstance(value, dict) and value.get(PATCH) == "delete"):
            kept.pop(key, None)
        else:
            kept[key] = strategic_merge(kept.get(key), value, key)
    retained = patch.get(RETAIN)
    return {key: value for key, value in kept.items() if retained is None or key in retained}


def _merge_items(base: list[Item], patch: list[Item], field: str) -> list[Item]:
    key = MERGE_KEYS[field]
    replaced = {PATCH: "replace"} in patch
    patches = {item[key]: item for item in patch if key in item}
    merged = []
    for item in [] if replaced else base:
        change = patches.pop(item[key], None)
        if change is None:
            merged.append(item)
        elif change.get(PATCH) != "delete":
            merged.append(_merge_mappings(_same_source(item, change, field), change))
    new = (item for item in patches.values() if item.get(PATCH) != "delete")
    return merged + [_merge_mappings({}, item) for item in new]


def _same_source(item: Item, change: Item, field: str) -> Item:
    """The item without a source that the change gives up by naming another."""
    if field not in ONE_OF:
        return item
    members = set(change) - {*ONE_OF[field], PATCH, RETAIN}
    return item if not members - set(item) else {key: item[key] for key in ONE_OF[field] if key in item}
