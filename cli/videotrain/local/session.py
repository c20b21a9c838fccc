"""One life of a local run: cluster, object store, nodes and operator, from start until the run rests."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from videotrain.bills.sources import bills_in_folder, store_bill
from videotrain.bills.tracked import attach_bill
from videotrain.embedded.database import DATABASE_FILE
from videotrain.embedded.process_nodes import ProcessNodes
from videotrain.embedded.store import EmbeddedCluster
from videotrain.files import PROFILE_REQUEST
from videotrain.local.chaos import FaultInjector
from videotrain.local.chaos_spec import FiredFaults
from videotrain.local.display import Display
from videotrain.local.ending import EXIT_SUSPENDED, Outcome, next_commands, outcome_of
from videotrain.local.operator_loop import Operating
from videotrain.local.prepare import USER_MANAGER, Prepared, with_storage
from videotrain.local.workdir_lock import LEAST_BYTES, check_space
from videotrain.objectstore.s3_client import Credentials, s3_client
from videotrain.objectstore.s3_server import ObjectServer
from videotrain.processes.leftovers import end_leftovers
from videotrain.report import write_report
from videotrain.report.summary import DROP_REPORT_FILE, SAMPLES_FOLDER, SUMMARY_FILE, write_summary
from videotrain.report.workdir import S3Objects
from videotrain.results.folder import FOLDER, Results, write_results
from videotrain.tasks import end
from videotrain_api.schema import Json
from videotrain_api.vocabulary import ANNOTATION_PROFILE, ANNOTATION_SUSPENDED_BY, KIND
from videotrain_operator.cluster.interface import NotFound

_log = logging.getLogger(__name__)

SUSPENDER: Final = "videotrain-local"
"""Value of the annotation that marks a suspension as this command's own."""
REQUEST_SECONDS: Final = 0.5
"""How often a request for a trace is looked for."""
SPACE_SECONDS: Final = 2.0
"""How often the free disk space is looked at."""


class Session:
    """Brings everything up, waits until the run rests, and takes everything down."""

    def __init__(self, workdir: Path, prepared: Prepared, metrics_port: int | None, display: Display) -> None:
        self._workdir = workdir
        self._prepared = prepared
        self._metrics_port = metrics_port or 0
        self._display = display
        self._cluster = EmbeddedCluster(workdir / DATABASE_FILE)
        self._interrupts = 0
        self._suspend = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> Outcome:
        """Run until the run rests, or a second interrupt stops everything at once.

        Raises:
            ObjectServerError: the embedded object store could not be started, or ended.
            DirectoryError: the disk is full.
            OSError: a file of the working directory could not be written.
            sqlite3.Error: the cluster's database could not be written.
        """
        try:
            with self._signals():
                outcome = await self._unless_stopped(self._with_store())
        finally:
            self._cluster.close()
        return outcome or Outcome(EXIT_SUSPENDED, "stopped at once; the same command goes on from the last checkpoint")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first interrupt suspends, the second one stops everything at once."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._display.event("suspending: saving a checkpoint and releasing the nodes (again: stop at once)")
            self._suspend.set()
        else:
            self._stop.set()

    async def _unless_stopped(self, work: Coroutine[Any, Any, Outcome]) -> Outcome | None:
        """The outcome of the work, which is cancelled if everything is to stop; it cleans up on its way out."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            stop.cancel()
            await cancel(task)
        return None

    async def _with_store(self) -> Outcome:
        """Start the object store and serve the run with it."""
        # First: what a killed session left behind writes to the same files and holds the same ports.
        await asyncio.to_thread(end_leftovers, self._workdir)
        if self._prepared.credentials is not None:
            return await self._serve(with_storage(self._prepared, None, self._prepared.credentials), None)
        self._display.event("starting the object store")
        server = await ObjectServer.start(self._workdir, self._prepared.run.spec.storage.uri)
        try:
            return await self._serve(with_storage(self._prepared, server.endpoint_url, server.credentials), server)
        finally:
            await server.stop()

    async def _serve(self, prepared: Prepared, server: ObjectServer | None) -> Outcome:
        self._display.event(prepared.shares.summary)
        await self._submit(prepared)
        devices = prepared.shares.by_name()
        shapes = dict(zip(devices, prepared.shapes, strict=True))
        nodes = ProcessNodes(self._cluster, self._workdir, devices, shapes, prepared.run.metadata.namespace)
        await nodes.recover()
        fired = FiredFaults(self._workdir / "chaos.json")
        faults = FaultInjector(prepared.faults, fired, nodes, self._display.event)
        operating = Operating(self._cluster, prepared.run, faults, self._display, self._workdir, self._metrics_port)
        background = [nodes.run(), self._watch_space(), self._suspend_when_asked(prepared)]
        background.append(self._profile_when_asked(prepared))
        background += [server.ended()] if server else []
        run = await first_of(operating.run(), background)
        outcome = outcome_of(run, self._workdir, interrupted=self._suspend.is_set())
        files, results = await asyncio.to_thread(self._write_results, run, prepared)
        unfired = [f"chaos: {text} never fired" for text in faults.never_fired()]
        details = [*unfired, *outcome.details, *results.notes]
        following = next_commands(self._workdir, outcome.exit_code, results)
        return Outcome(outcome.exit_code, outcome.message, details, files, following)

    async def _submit(self, prepared: Prepared) -> None:
        """Bring the user's objects into the cluster; take back a suspension of this command's own."""
        for secret in prepared.secrets:
            await self._cluster.apply(secret, USER_MANAGER)
        metadata = prepared.run.metadata
        try:
            held = await self._cluster.get(KIND, metadata.namespace, metadata.name)
        except NotFound:
            held = {"metadata": {}}
        if held["metadata"].get("annotations", {}).get(ANNOTATION_SUSPENDED_BY) == SUSPENDER:
            patch = {"metadata": {"annotations": {ANNOTATION_SUSPENDED_BY: None}}, "spec": {"suspend": None}}
            await self._cluster.patch(KIND, metadata.namespace, metadata.name, patch)
        await self._cluster.apply(prepared.manifest, USER_MANAGER)

    async def _suspend_when_asked(self, prepared: Prepared) -> None:
        await self._suspend.wait()
        metadata = prepared.run.metadata
        run = await self._cluster.get(KIND, metadata.namespace, metadata.name)
        if not run["spec"].get("suspend"):
            patch = {"metadata": {"annotations": {ANNOTATION_SUSPENDED_BY: SUSPENDER}}, "spec": {"suspend": True}}
            await self._cluster.patch(KIND, metadata.namespace, metadata.name, patch)
        await asyncio.Event().wait()

    async def _profile_when_asked(self, prepared: Prepared) -> None:
        """Put the wish of `videotrain profile` on the run, as whoever has a cluster does with an annotation."""
        path, metadata = self._workdir / PROFILE_REQUEST, prepared.run.metadata
        while True:
            if path.is_file():
                patch = {"metadata": {"annotations": {ANNOTATION_PROFILE: path.read_text(encoding="utf-8")}}}
                path.unlink()
                await self._cluster.patch(KIND, metadata.namespace, metadata.name, patch)
            await asyncio.sleep(REQUEST_SECONDS)

    async def _watch_space(self) -> None:
        """Stop before the disk is full: a cut-off database or log would be worse.

        Raises:
            DirectoryError: the disk is nearly full.
        """
        while True:
            await asyncio.sleep(SPACE_SECONDS)
            check_space(self._workdir, LEAST_BYTES)

    def _write_results(self, run: Json, prepared: Prepared) -> tuple[dict[str, Path], Results]:
        storage = prepared.run.spec.storage
        keys = prepared.credentials
        assert keys is not None, "with_storage() has filled them in"
        client = s3_client(storage.endpoint_url, Credentials(*keys), storage.region)
        objects, workdir = S3Objects(client), self._workdir
        files = {"summary": write_summary(workdir, run, objects)}
        bills = bills_in_folder(workdir)
        for bill in bills:  # also one that is open: a suspended run may never go on, and its folder may be lost
            store_bill(client, storage.uri, bill)
        files["report"] = write_report(workdir, run)
        samples = workdir / SAMPLES_FOLDER
        files |= {"samples": samples} if samples.is_dir() else {}
        # The address and the keys of the embedded store are no part of what the user wrote.
        shared = [workdir / SUMMARY_FILE, workdir / DROP_REPORT_FILE, *files.values()]
        also = {path.name: path for path in shared if path.exists()}
        last = bills[-1] if bills else None
        results = write_results(workdir / FOLDER, run, self._prepared.manifest, objects, last, also)
        mine = [bill for bill in bills if bill.closed and bill.uid == run["metadata"]["uid"]]
        if mine and (tracking := prepared.run.spec.tracking).to:
            done, told = attach_bill(mine[0], tracking, storage, Credentials(*keys))
            results.notes += [] if done else [f"{line}; the same command tries again" for line in told]
        return files | {"results": results.folder, "logs": workdir / "logs"}, results


async def first_of(work: Coroutine[Any, Any, Json], background: list[Coroutine[Any, Any, None]]) -> Json:
    """The result of the work; whatever the background raises ends it. All are cancelled and awaited at the end."""
    main = asyncio.create_task(work)
    others = [asyncio.create_task(item) for item in background]
    try:
        done, _ = await asyncio.wait([main, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task is not main:
                task.result()
        return await main
    except BaseExceptionGroup as group:
        raise first_leaf(group) from group
    finally:
        for task in [main, *others]:
            await cancel(task)


def first_leaf(error: BaseException) -> BaseException:
    """The first real exception in nested groups, which is the one that a user can act on."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has cleaned up; an error on its way out is logged, the first one counts."""
    if task.done():
        return
    try:
        await end(task)
    except Exception:
        _log.exception("while stopping")
