"""Saving: copy to host memory, then everything else in a background thread.

1. Every rank copies its share into a host buffer; only this stops training.
2. Its thread computes checksums, uploads the file and then a small description of it (`parts/`).
3. The thread of rank 0 waits for all descriptions, checks that together they hold every element once, and writes the
   index, the order segment and, last and only if absent, commit.json.
4. All threads wait for commit.json, so that every pod records the checkpoint as complete.

Ranks meet in the object store and not in a collective: a collective in a thread of its own would need a second set of
process groups that may never be used at the same time as the first.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer.checkpoint.catalog import delete_checkpoint, give_up, read_commit, stored_steps
from videotrain_trainer.checkpoint.commit import Committer, Waiter, part_uri
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError, read_again, seal
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.checkpoint.host_file import HostFile
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.checkpoint.retention import steps_to_delete
from videotrain_trainer.checkpoint.state import Member, Part, Point, StoredFile
from videotrain_trainer.checksums import READINGS
from videotrain_trainer.errors import ObjectMissing, StorageUnavailable, TrainerError
from videotrain_trainer.sharded_state import ShardedState, packed_length
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter


class CheckpointWriter:
    """Saves checkpoints of one generation, one at a time.

    Args:
        store: object store.
        member: this process.
        policy: gives retention.
        order: log of the samples; used on rank 0 only.
        reporter: told when a checkpoint is complete.
    """

    def __init__(
        self, store: ObjectStore, member: Member, policy: CheckpointPolicy, order: OrderLog, reporter: StageReporter
    ) -> None:
        self._store = store
        self._member = member
        self._policy = policy
        self._reporter = reporter
        self._fence = Fence(store, member.prefix, member.generation)
        self._closing = threading.Event()
        self._waiter = Waiter(self._closing)
        self._committer = Committer(store, member, order, self._waiter, reporter) if member.rank == 0 else None
        self._file: HostFile | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self.complete_step = 0
        """Newest step of this generation that is known to be complete."""

    def save(self, state: ShardedState, point: Point) -> int:
        """Copy the state and start writing; waits for the checkpoint before, if that is still being written.

        Returns:
            Microseconds for which the caller was held up.

        Raises:
            TrainerError: the checkpoint before failed.
        """
        began = time.monotonic_ns()
        self.wait()
        if self._file is None:
            pinned = state.device.type == "cuda"
            self._file = HostFile(state.quantities, packed_length(state.saved), pinned=pinned)
        for quantity in state.quantities:
            state.read(quantity, self._file.vector(quantity))
        stall = (time.monotonic_ns() - began) // 1000
        self._running = self._thread.submit(self._write, self._file, state, point, stall)
        return stall

    def check(self) -> None:
        """Raise what made a checkpoint fail in the background, if one did; never waits."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is complete.

        Raises:
            TrainerError: it failed.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Give up a checkpoint that is still being written; it stays incomplete. Does not wait for an upload."""
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self, file: HostFile, state: ShardedState, point: Point, stall: int) -> None:
        """In the thread. Of `state` only what never changes is read here."""
        part = self._upload(file, state, point.step)
        if self._committer is not None:
            self._committer.commit(part, {name: list(shape) for name, shape in state.shapes.items()}, point)
        manifest = self._await_commit(point.step)
        uri = layout.checkpoint_prefix(self._member.prefix, point.step)
        size = sum(item.bytes for item in manifest.files)
        self._reporter.checkpoint(point.step, point.captured_at, manifest.committed_at, uri, size, stall)
        self.complete_step = point.step
        if self._committer is not None:
            self._retain(point.step)

    def _upload(self, file: HostFile, state: ShardedState, step: int) -> StoredFile:
        member = self._member
        name = f"g{member.generation:06d}-{member.rank:05d}-of-{member.world_size:05d}.safetensors"
        part = file.described(name, member.rank, state.saved)
        self._store.put(f"{layout.checkpoint_prefix(member.prefix, step)}/{name}", file.data)
        uri = part_uri(member.prefix, step, member.generation, member.rank)
        self._store.put_once(uri, seal(Part(file=part)))
        return part

    def _await_commit(self, step: int) -> CheckpointManifest:
        prefix = self._member.prefix

        def look() -> CheckpointManifest | None:
            try:
                return read_again(self._store, lambda source: read_commit(source, prefix, step, self._member.owner))
            except ObjectMissing:
                return None
            except DamagedCheckpointError as error:
                raise StorageUnavailable(f"{error}; read {READINGS} times") from error

        return self._waiter.until(look, f"commit.json of step {step}")

    def _retain(self, step: int) -> None:
        """Delete what is no longer kept, if this generation is still the newest. Trouble is told; it ends nothing."""
        try:
            found = stored_steps(self._store, self._member.prefix)
            if step not in found.complete:
                raise StorageUnavailable(
                    f"{layout.checkpoints(self._member.prefix)}: the listing lacks step {step}, which is complete; "
                    "nothing is deleted by it"
                )
            for old in steps_to_delete(
                found.complete,
                found.incomplete,
                refused=found.refused,
                keep_last=self._policy.keep_last,
                keep_every=self._policy.keep_every_steps,
            ):
                self._fence.check()
                if old in found.complete:
                    delete_checkpoint(self._store, self._member.prefix, old, self._member.generation)
                else:
                    give_up(self._store, self._member.prefix, old)
        except TrainerError as error:
            self._reporter.housekeeping("retention", error)
