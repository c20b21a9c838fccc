"""`videotrain local`: the whole way on this machine, without Kubernetes.

The same planner and the same observing and applying as in a cluster work here against the embedded one; see
`videotrain.embedded`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from videotrain.embedded.database import DATABASE_FILE, StoreError, read_objects
from videotrain.errors import UsageError
from videotrain.local.display import Display, make_display
from videotrain.local.ending import EXIT_SUSPENDED, Outcome
from videotrain.local.operator_loop import MetricsPortError, OperatorError
from videotrain.local.prepare import Prepared, prepare
from videotrain.local.session import Session
from videotrain.local.workdir_lock import check_same_run, check_space, locked
from videotrain.locks import DirectoryError, explain
from videotrain.logfile import LogFile, logging_to, open_log
from videotrain.manifest_file import Source
from videotrain.object_requests import STORE_ERRORS
from videotrain.objectstore.s3_server import ObjectServerError
from videotrain.processes.addresses import NoAddressError
from videotrain.processes.devices import Device
from videotrain_api.vocabulary import KIND

EXIT_FAILED: Final = 1
_STOPPED: Final = (
    *(ObjectServerError, NoAddressError, OperatorError, MetricsPortError, DirectoryError, sqlite3.Error),
    *STORE_ERRORS,
)
"""What ends this process, not the run: the run goes on from there once the cause is gone."""
LOG_FILE: Final = "logs/videotrain.log"


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """The command line of `videotrain local`."""

    manifest: Path | Source
    workdir: Path
    data: Path | None = None
    """Folder of raw videos instead of spec.dataset.videos."""
    chaos: tuple[str, ...] = ()
    """Faults; see videotrain.local.chaos_spec."""
    seed: int | None = None
    """Instead of spec.seed."""
    json: bool = False
    """Progress and result as JSON lines."""
    device: Device = "auto"
    """What the worker processes compute on; see videotrain.processes.devices."""
    metrics_port: int | None = None
    """Port of the operator's /metrics on 127.0.0.1; any free one if None or 0."""


def run_local(options: LocalOptions) -> int:
    """Run a manifest to its end, or until Ctrl-C or SIGTERM suspends it; the same command resumes.

    Returns:
        0 if the run succeeded (or is suspended by its own manifest), 1 if it failed or its budget suspended it, 130
        after Ctrl-C or SIGTERM.

    Raises:
        ManifestFileError: the file cannot be read.
        ManifestError: the manifest is refused.
        UsageError: the working directory, the dataset, the object store, a fault or the device cannot be used.
    """
    prepared = prepare(options.manifest, options.data, options.seed, options.chaos, options.device)
    try:
        with locked(options.workdir) as workdir:
            log = _log(workdir)
            with logging_to(log):
                check_space(workdir)
                _check_held(workdir, prepared)
                outcome = _run(options, workdir, prepared)
    except (DirectoryError, StoreError) as error:
        raise UsageError(str(error)) from None
    if log.lost:
        details = (*outcome.details, f"{log.lost} lines of {LOG_FILE} could not be written")
        outcome = replace(outcome, details=details)
    _conclude(options, outcome)
    return outcome.exit_code


def _check_held(workdir: Path, prepared: Prepared) -> None:
    database = workdir / DATABASE_FILE
    for held in read_objects(database, KIND) if database.is_file() else []:
        wanted = prepared.run
        if prepared.credentials is None:
            # The embedded object store's address and keys were filled in by the first start.
            names = {"endpoint_url": "endpointUrl", "credentials_secret": "credentialsSecret"}
            filled = {name: held["spec"]["storage"].get(key) for name, key in names.items()}
            storage = wanted.spec.storage.model_copy(update=filled)
            wanted = wanted.model_copy(update={"spec": wanted.spec.model_copy(update={"storage": storage})})
        check_same_run(workdir, held, wanted)


def _run(options: LocalOptions, workdir: Path, prepared: Prepared) -> Outcome:
    display = make_display(options)
    try:
        with display:
            return asyncio.run(_session(options, workdir, prepared, display))
    except _STOPPED as error:
        logging.getLogger(__name__).exception("the local run stopped")
        return Outcome(EXIT_FAILED, f"{error}; the same command goes on from here")
    except OSError as error:
        logging.getLogger(__name__).exception("the local run stopped")
        return Outcome(
            EXIT_FAILED, f"{error.filename or workdir}: {explain(error)}; the same command goes on from here"
        )


async def _session(options: LocalOptions, workdir: Path, prepared: Prepared, display: Display) -> Outcome:
    return await Session(workdir, prepared, options.metrics_port, display).run()


def _log(workdir: Path) -> LogFile:
    path = workdir / LOG_FILE
    try:
        return open_log(path)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be written: {explain(error)}") from None


def _conclude(options: LocalOptions, outcome: Outcome) -> None:
    """Tell how it ended and where everything is."""
    if options.json:
        document = {"type": "result", "exit_code": outcome.exit_code, "message": outcome.message}
        files = {name: str(path) for name, path in outcome.files.items()}
        document |= {"files": files, "details": list(outcome.details), "next": list(outcome.following)}
        sys.stdout.write(json.dumps(document) + "\n")
        return
    lines = [outcome.message, *outcome.details]
    lines += [f"  {name:<10} {path}" for name, path in outcome.files.items()]
    if outcome.following:
        lines += ["next:", *(f"  {command}" for command in outcome.following)]
    stream = sys.stdout if outcome.exit_code in (0, EXIT_SUSPENDED) else sys.stderr
    stream.write("\n".join(lines) + "\n")
