"""What trackers have, by their own readers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trackers.generations import EVERY, STEPS

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer.storage import ObjectStore

SHOWN = [1, *range(EVERY, STEPS + 1, EVERY)]
"""Steps that every curve has, each once."""


def fetched(storage: Storage, name: str, folder: Path) -> Path:
    """The files of a tracker, from the run's storage alone."""
    store, prefix = ObjectStore.for_storage(storage), f"{layout.tracking_prefix(storage.uri, 'curves')}/{name}"
    for found in store.list(prefix):
        path = folder / found.uri.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(found, path)
    return folder


def wandb_records(folder: Path) -> Iterator[tuple[Path, Any]]:
    """The records of all .wandb files, with the file."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.rglob("*.wandb")):
        for data in _logged(path):
            yield path, wandb_internal_pb2.Record.FromString(data)


def _logged(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: blocks of 32 KiB as LevelDB's log has them, behind a head of seven bytes."""
    data, place, begun = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server of MLflow on this machine, on a port that the kernel chooses and its log tells."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "art")]
    command = ["server", "--host", "127.0.0.1", "--port", "0", "--workers", "1", *store]
    log = folder / "server.log"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # The whole package wants an older pyarrow than ours; clients need its skinny part alone, of the same version.
    tool = [sys.executable, "-m", "uv", "tool", "run", "--from", f"mlflow=={version('mlflow-skinny')}", "mlflow"]
    with log.open("w") as told_to:
        process = subprocess.Popen([*tool, *command], stdout=told_to, stderr=told_to, env=environment)
        try:
            while (told := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
            yield told[1]
        finally:
            process.terminate()
            process.wait()
