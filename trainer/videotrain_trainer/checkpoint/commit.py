"""Rank 0's share of saving: from the descriptions of all ranks to commit.json."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointFile, CheckpointManifest
from videotrain_trainer.checkpoint.catalog import note_latest, read_commit
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError, read_again, seal, unseal
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.checkpoint.fragments import coverage_problems
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.checkpoint.state import BLOCK_BYTES, CheckpointIndex, Member, Part, Point, StoredFile
from videotrain_trainer.checksums import checksum
from videotrain_trainer.errors import AlreadyExists, Fenced, ObjectMissing, StorageUnavailable, TrainerError
from videotrain_trainer.sharded_state import pack
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

PART_READINGS = 5
"""Looks at one rank's description before its object is told as unreadable."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two looks for objects of other ranks."""

Found = TypeVar("Found")


class AbandonedError(TrainerError):
    """The process ends before the checkpoint is complete."""


class Waiter:
    """Looks for something that another process makes, less and less often.

    Args:
        closing: set when the process ends.
    """

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing

    def until(self, look: Callable[[], Found | None], what: str) -> Found:
        """What `look` finds.

        Raises:
            AbandonedError: the process ends first.
        """
        pause = FIRST_PAUSE
        while (found := look()) is None:
            if self._closing.wait(pause):
                raise AbandonedError(f"gave up waiting for {what}: the process ends")
            pause = min(pause * 1.5, LONGEST_PAUSE)
        return found


def part_uri(prefix: str, step: int, generation: int, rank: int) -> str:
    """Where a rank describes its file until rank 0 has put all descriptions into index.json."""
    return f"{layout.checkpoint_prefix(prefix, step)}/parts/g{generation:06d}-{rank:05d}.json"


def index_name(generation: int) -> str:
    """The index of a checkpoint carries the generation, so that a later attempt at the step never overwrites it."""
    return f"g{generation:06d}-index.json"


class Committer:
    """Makes checkpoints complete.

    Args:
        store: object store.
        member: this process, rank 0.
        order: log of the samples.
        waiter: for the descriptions of the other ranks.
        reporter: told what fails beside the checkpoint.
    """

    def __init__(
        self, store: ObjectStore, member: Member, order: OrderLog, waiter: Waiter, reporter: StageReporter
    ) -> None:
        self._store = store
        self._member = member
        self._order = order
        self._waiter = waiter
        self._reporter = reporter
        self._fence = Fence(store, member.prefix, member.generation)

    def commit(self, own: StoredFile, shapes: Mapping[str, list[int]], point: Point) -> None:
        """Wait for all ranks, then write order, index and commit manifest.

        Raises:
            Fenced: a newer generation has begun.
            TrainerError: the files do not make a whole.
        """
        files = self._collect(own, point.step)
        self._check_whole(files, shapes, point.step)
        index = CheckpointIndex(block_bytes=BLOCK_BYTES, shapes=dict(shapes), quantities=list(own.vectors), files=files)
        listed = [self._put_index(index, point.step)]
        listed += [CheckpointFile(name=file.name, bytes=file.bytes, crc32c=file.crc32c) for file in files]
        self._fence.check()
        segments, digest = self._order.append(point.lines, self._member.generation)
        manifest = CheckpointManifest(
            run=self._member.run,
            stage=self._member.stage,
            config_hash=self._member.config_hash,
            generation=self._member.generation,
            step=point.step,
            world_size=self._member.world_size,
            captured_at=point.captured_at,
            committed_at=datetime.now(UTC),
            files=listed,
            data_cursor=point.data_cursor,
            order=segments,
            order_sha256=digest,
            samples=point.samples,
            source_samples=self._order.source_samples,
        )
        self._put_commit(manifest)
        try:
            note_latest(self._store, self._member.prefix, manifest)
        except TrainerError as error:
            self._reporter.housekeeping("latest", error)

    def _collect(self, own: StoredFile, step: int) -> list[StoredFile]:
        known = {own.rank: own}
        mark = re.compile(rf"/g{self._member.generation:06d}-(\d+)\.json$")
        folder = part_uri(self._member.prefix, step, 0, 0).rpartition("/")[0]

        unreadable: dict[str, int] = {}

        def look() -> list[StoredFile] | None:
            for item in self._store.list(folder):
                match = mark.search(item.uri)
                if match and int(match.group(1)) not in known:
                    try:
                        known[int(match.group(1))] = unseal(Part, item.uri, self._store.get(item.uri)).file
                    except (DamagedCheckpointError, ObjectMissing) as error:
                        unreadable[item.uri] = unreadable.get(item.uri, 0) + 1
                        if unreadable[item.uri] == PART_READINGS:
                            raise StorageUnavailable(f"{error}; read {PART_READINGS} times") from error
            return [known[rank] for rank in sorted(known)] if len(known) == self._member.world_size else None

        return [own] if self._member.world_size == 1 else self._waiter.until(look, f"all ranks' parts of step {step}")

    def _check_whole(self, files: Sequence[StoredFile], shapes: Mapping[str, list[int]], step: int) -> None:
        prefix = layout.checkpoint_prefix(self._member.prefix, step)
        gaps = coverage_problems(shapes, [pack(file.pieces) for file in files])
        if gaps:
            raise TrainerError(f"{prefix}: the ranks' files do not make a whole checkpoint: {'; '.join(gaps[:5])}")
        problems: list[str] = []
        for store in (self._store, self._store.reconnected()):
            sizes = {item.uri.removeprefix(f"{prefix}/"): item.size for item in store.list(prefix)}
            problems = [
                f"{file.name}: {sizes.get(file.name, 'no')} bytes stored, {file.bytes} written"
                for file in files
                if sizes.get(file.name) != file.bytes
            ]
            if not problems:
                return
        raise StorageUnavailable(f"{prefix}: what was stored is not there, listed twice: {'; '.join(problems[:5])}")

    def _put_index(self, index: CheckpointIndex, step: int) -> CheckpointFile:
        name, data = index_name(self._member.generation), index.model_dump_json(by_alias=True).encode()
        self._store.put_once(f"{layout.checkpoint_prefix(self._member.prefix, step)}/{name}", data)
        return CheckpointFile(name=name, bytes=len(data), crc32c=checksum(data))

    def _put_commit(self, manifest: CheckpointManifest) -> None:
        uri, data = layout.checkpoint_commit(self._member.prefix, manifest.step), seal(manifest)
        try:
            try:
                self._store.put_once(uri, data)
            except AlreadyExists:
                if self._store.reconnected().stat(uri).size:
                    raise
                # Given up: by a newer generation, or by one before, whose later checkpoints were refused since.
                self._fence.check()
                self._store.delete(uri)
                self._store.put_once(uri, data)
        except AlreadyExists:
            # An older generation that was about to end got there first. Both hold the same samples, and so the same
            # weights, or something is badly wrong.
            stored = read_again(
                self._store,
                lambda source: read_commit(source, self._member.prefix, manifest.step, self._member.owner),
            )
            if not _same_order(stored, manifest):
                raise Fenced(
                    f"{uri}: generation {stored.generation} has saved this step with other samples than generation "
                    f"{manifest.generation}"
                ) from None


def _same_order(first: CheckpointManifest, second: CheckpointManifest) -> bool:
    """Whether two checkpoints of a step were trained on the same samples."""
    if first.order_sha256 and second.order_sha256:
        return first.order_sha256 == second.order_sha256
    # Where segments before could not be read back, those that both list are compared by their checksums.
    steps = [{(part.first_step, part.last_step): part.crc32c for part in found.order} for found in (first, second)]
    return steps[0] == steps[1]
