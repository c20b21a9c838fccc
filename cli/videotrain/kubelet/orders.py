"""Orders to the process nodes of a working directory, as files: how tests and people break things on purpose.

An order is a JSON file `control/NAME.json`, put there by a rename; its answer is `control/NAME.result`, `{"ok": true}`
with what the order gives, or `{"ok": false, "error": ...}`. The orders are methods of KubeNodes:

    {"order": "kill-node", "node": N}        cut the power of a node
    {"order": "restore-node", "node": N}     switch it on again; registers it anew if its Node object was deleted
    {"order": "kill-pod", "namespace": NS, "pod": P, "exitCode": 137, "reason": "OOMKilled"}
                                             kill its processes and report that they ended so
    {"order": "status"}                      nodes, and pods with process id and log
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
Orders = Mapping[str, Callable[[Json], Awaitable[Json]]]
_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1


class OrderError(Exception):
    """An order was refused or not answered."""


def control_folder(workdir: Path) -> Path:
    """Where orders lie."""
    return workdir / "control"


async def obey(workdir: Path, orders: Orders) -> None:
    """Carry out orders for ever, one after the other; those that were given before are the first."""
    folder = control_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for path in sorted(folder.glob("*.json")):
            answer = await _carry_out(path, orders)
            path.unlink()
            _put(path.with_suffix(".result"), answer)
        await asyncio.sleep(POLL_SECONDS)


def give_order(workdir: Path, order: str, timeout_seconds: float = 60.0, **details: Any) -> Json:
    """Give an order and wait until it was carried out.

    Args:
        workdir: of the process nodes.
        order: its name.
        timeout_seconds: how long to wait.
        details: its other fields.

    Returns:
        The answer.

    Raises:
        OrderError: it was refused, or nobody answered.
    """
    path = control_folder(workdir) / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _put(path, {"order": order, **details})
    result, until = path.with_suffix(".result"), time.monotonic() + timeout_seconds
    while not result.exists():
        if time.monotonic() > until:
            path.unlink(missing_ok=True)
            raise OrderError(f"{order}: no answer in {timeout_seconds:g} s from process nodes in {workdir}")
        time.sleep(POLL_SECONDS)
    answer: Json = json.loads(result.read_text())
    result.unlink()
    if not answer.pop("ok"):
        raise OrderError(f"{order}: {answer['error']}")
    return answer


async def _carry_out(path: Path, orders: Orders) -> Json:
    try:
        order = json.loads(path.read_text())
        name = order["order"]
        if name in orders:
            return {"ok": True, **await orders[name](order)}
        return {"ok": False, "error": f"order {name!r}: allowed are {', '.join(orders)}"}
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("order %s refused: %s", path.name, error)
        told = f"missing field or unknown name: {error.args[0]}" if isinstance(error, KeyError) else str(error)
        return {"ok": False, "error": told}


def _put(path: Path, content: Json) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)
