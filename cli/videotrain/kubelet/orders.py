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
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from videotrain.files import replace_file
from videotrain_api.schema import Json

Orders = Mapping[str, Callable[[Json], Awaitable[Json]]]
_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1


def control_folder(workdir: Path) -> Path:
    """The folder into which orders to the nodes are put, one JSON file each."""
    return workdir / "control"


async def obey(workdir: Path, orders: Orders) -> None:
    """Carry out orders for ever, one after the other; those that were given before are the first."""
    folder = control_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for path in sorted(folder.glob("*.json")):
            answer = await _carry_out(path, orders)
            path.unlink()
            replace_file(path.with_suffix(".result"), json.dumps(answer))
        await asyncio.sleep(POLL_SECONDS)


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
