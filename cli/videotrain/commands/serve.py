"""`videotrain serve`: the object store of a local run, between two runs of `videotrain local`."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from pathlib import Path

from videotrain.commands.get import local_runs
from videotrain.embedded.database import StoreError
from videotrain.errors import UsageError
from videotrain.local.workdir_lock import locked
from videotrain.locks import DirectoryError
from videotrain.objectstore.s3_server import ObjectServer, ObjectServerError


def serve(workdir: Path) -> int:
    """Serve until Ctrl-C or SIGTERM, and say how to reach it.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: a run is going on there (which serves the same), the run has an object store of its own, or the
            server cannot start.
    """
    uri = local_runs(workdir)[0]["spec"]["storage"]["uri"]
    if not (workdir / "s3" / "credentials.json").is_file():
        raise UsageError(f"{workdir}: its run has an object store of its own, {uri}; there is nothing to serve")
    try:
        with locked(workdir, "its object store is served") as held:
            return asyncio.run(_serve(held, uri))
    except (DirectoryError, StoreError, ObjectServerError) as error:
        raise UsageError(str(error)) from None


async def _serve(workdir: Path, uri: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await ObjectServer.start(workdir, uri)
    waiting = [asyncio.ensure_future(server.ended()), asyncio.ensure_future(stop.wait())]
    try:
        values = {
            "AWS_ENDPOINT_URL": server.endpoint_url,
            **server.credentials.environment(),
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in values.items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        sys.stdout.write(f"# everything that the run wrote is under {uri}: aws s3 ls {uri}/ --recursive\n")
        sys.stdout.write("# serving until Ctrl-C\n")
        sys.stdout.flush()
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await server.stop()
    return 0
