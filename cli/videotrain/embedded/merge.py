"""The arithmetic of server-side apply, reduced to maps that merge and lists that are replaced whole.

Atomic lists are enough here: every list that the operator applies has the operator as its only writer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from videotrain_api.schema import Json


def apply_manifest(current: Json, before: Json, new: Json, others: Iterable[Json]) -> Json:
    """The object after its manager applied `new`.

    Args:
        current: the object as stored.
        before: what the same manager applied last; fields in it that `new` lacks are removed.
        new: what the manager wants now.
        others: what other managers applied last; a field that one of them also wants stays.
    """
    kept = list(others)
    return _merged(_without(current, before, [new, *kept]), new)


def merge_patch(current: Json, patch: Json) -> Json:
    """The object after a JSON merge patch (RFC 7396): null removes a field."""
    result = dict(current)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            inner = result.get(key)
            result[key] = merge_patch(inner if isinstance(inner, dict) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merged(current: Json, new: Json) -> Json:
    result = dict(current)
    for key, value in new.items():
        inner = result.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            result[key] = _merged(inner, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _without(current: Json, owned: Json, wanted: list[Json]) -> Json:
    """`current` less the fields of `owned` that no manifest in `wanted` has."""
    result = dict(current)
    for key, value in owned.items():
        holders = [manifest[key] for manifest in wanted if key in manifest]
        if key not in result:
            continue
        if isinstance(value, dict) and isinstance(result[key], dict):
            maps = [holder for holder in holders if isinstance(holder, dict)]
            inner = _without(result[key], value, maps)
            if inner or holders:
                result[key] = inner
            else:
                del result[key]
        elif not holders:
            del result[key]
    return result
