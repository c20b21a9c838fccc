"""What runs inside a Ray cluster: a stream of Ray Data over units that come while it runs.

The drive is an actor. A task without a CPU of its own reads units from it, a pool of actors that grows with the cluster
does them, and the drive holds their results until it is asked. The stream bounds what is under way: a unit is handed
out when an actor has room for it.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from videotrain_trainer.engines.interface import Interrupted, Unit, Used, Work
from videotrain_trainer.errors import TrainerError

TELL_SECONDS = 2.0
"""How often an actor tells how far its unit is."""
NODE_ID = "ray.io/node-id"
"""Label that Ray gives to each node."""
BUSY = 1.0
"""Units per actor, under way or waiting for it, from which on there are more actors where a node has room."""


class Drive:
    """An actor; see the module.

    Args:
        work: does units.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._offered: queue.SimpleQueue[tuple[str, int, dict[str, Any]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._parts: dict[str, int] = {}
        self._used: dict[str, Used] = {}
        self._ended = False
        self._trouble = ""
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._run, name="stream", daemon=True).start()

    def offer(self, units: list[tuple[str, int, dict[str, Any]]], last: bool) -> None:
        """Take units.

        Args:
            units: names, weights and facts.
            last: no more will come.
        """
        for unit in units:
            self._offered.put(unit)
        if last:
            self._offered.put(None)

    def next(self, seconds: float) -> list[tuple[str, int, dict[str, Any]]] | None:
        """The next unit, for the task that reads; none came in so many seconds if empty, and None after the last."""
        try:
            unit = self._offered.get(timeout=seconds)
        except queue.Empty:
            return []
        if unit is None:
            self._offered.put(None)  # for a task that reads again
            return None
        return [unit]

    def tick(self, name: str, part: int, actor: str, used: Used) -> None:
        """An actor has done so many steps of a unit, and has used so much."""
        self._parts[name] = part
        self._used[actor] = used

    def poll(self, seconds: float) -> dict[str, Any]:
        """What came since the last call; waits for something so long.

        Returns:
            `results`: names, and JSON of `result` or of `error` and `text`. `parts`: steps by unit. `used`: by all
            actors. `ended`: the stream is over, and `trouble` says why if it is no regular end. `cpus`: of the cluster.
        """
        results: list[tuple[str, str]] = []
        end = time.monotonic() + seconds
        while not results and not self._ended and time.monotonic() < end:
            try:
                results.append(self._results.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        while not self._results.empty():
            results.append(self._results.get())
        for name, _ in results:
            self._parts.pop(name, None)
        ended = self._ended and self._results.empty()
        cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        used = sum((Counter(one) for one in list(self._used.values())), Counter[str]())
        told = {"results": results, "parts": dict(self._parts), "used": dict(used), "cpus": cpus}
        return told | {"ended": ended, "trouble": self._trouble}

    def _run(self) -> None:
        try:
            context = DataContext.get_current()
            context.target_max_block_size = 1  # a block per unit, so that each goes to whoever is free
            context.enable_progress_bars = False
            context.autoscaling_config.actor_pool_util_upscaling_threshold = BUSY
            at_once = self._work.units_at_once
            pool = ActorPoolStrategy(
                min_size=1,
                max_tasks_in_flight_per_actor=at_once + 1,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=at_once > 1,
            )
            # Lost with the drive only: a task that began anew elsewhere would read other units, and Ray would take them
            # for those that it has had, so that nobody did them.
            here = {NODE_ID: ray.get_runtime_context().get_node_id()}
            units = ray.data.read_datasource(
                UnitSource(self._self), override_num_blocks=1, num_cpus=0, label_selector=here
            )
            done = units.map_batches(
                Doer,
                fn_constructor_args=(self._work, self._self),
                compute=pool,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                num_gpus=self._work.gpus or None,
            )
            for row in done.iter_rows():
                self._results.put((row["name"], row["told"]))
        except BaseException as error:
            self._trouble = f"{type(error).__name__}: {error}"
        finally:
            self._ended = True


class UnitSource(Datasource):
    """Units that the drive is offered, read by one task as they come.

    Args:
        drive: the actor.
    """

    def __init__(self, drive: Any) -> None:
        self._drive = drive

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """One task that ends with the last unit."""
        drive = self._drive

        def read() -> Iterator[Any]:
            while (units := ray.get(drive.next.remote(1.0))) is not None:
                for name, weight, facts in units:
                    yield pa.table({"name": [name], "weight": [weight], "facts": [json.dumps(facts)]})

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


class Doer:
    """An actor of the pool: does units with a worker of its own, in as many threads as that does at the same time.

    Args:
        work: makes the worker.
        drive: hears how far units are.
    """

    def __init__(self, work: Work, drive: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vt-work-")
        self._worker = work.open(Path(self._folder.name) / "scratch")
        self._drive = drive
        self._name = uuid.uuid4().hex
        self._told_at = 0.0

    def __call__(self, batch: Any) -> Any:
        """One unit, as a table of one row: its name, and JSON of its result or of the error that ends the stage."""
        (row,) = batch.to_pylist()
        unit = Unit(row["name"], row["weight"], json.loads(row["facts"]))

        def tick(part: int) -> None:
            if time.monotonic() - self._told_at >= TELL_SECONDS:
                self._told_at = time.monotonic()
                self._drive.tick.remote(unit.name, min(part, unit.weight - 1), self._name, self._worker.used())

        try:
            told: dict[str, Any] = {"result": self._worker.do(unit, tick)}
            # Heard before the result is, since it is there before the table of this row.
            ray.get(self._drive.tick.remote(unit.name, unit.weight - 1, self._name, self._worker.used()))
        except (TrainerError, Interrupted) as interruption:
            error = interruption.__cause__ if isinstance(interruption, Interrupted) else interruption
            if not isinstance(error, TrainerError):
                raise
            told = {"error": type(error).__name__, "text": str(error)}
        return pa.table({"name": [unit.name], "told": [json.dumps(told)]})

    def __del__(self) -> None:
        self._worker.close()
        self._folder.cleanup()
