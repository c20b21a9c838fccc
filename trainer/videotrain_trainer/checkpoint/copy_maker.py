"""Making copies of the state in memory: the own one at once, and then one in the memory of the next pod.

Training stands still while a rank copies its share into a file in /dev/shm; checksums and the way to the next pod are
a thread's. There are two halves. A copy goes into the half that does not hold the newest set which all ranks have
finished, so that at any moment there is a whole set somewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from videotrain_trainer.checkpoint.copies import CopyFolder, CopyHeader
from videotrain_trainer.checkpoint.host_file import HostFile, mapped_file
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.sharded_state import ShardedState, packed_length
from videotrain_trainer.worker.stage_reporter import StageReporter

HALVES: Final = 2
log = logging.getLogger(__name__)


class Agreement(Protocol):
    """How the ranks of a world tell each other numbers."""

    def table(self, row: Sequence[float]) -> Tensor:
        """(ranks, len(row)) float64: the rows of all ranks. Collective."""


class Neighbours(Protocol):
    """The way from each rank to the one in the next pod that has its number there. Used by one thread."""

    def pass_on(self, header: bytes, data: Tensor, into: Receive) -> bytes:
        """Send a copy to the next pod while one comes from the pod before.

        Args:
            header: of the copy.
            data: (bytes,) uint8.
            into: makes the place for what comes.

        Returns:
            The header that came.
        """


class Receive(Protocol):
    """Makes the place for a copy's bytes."""

    def __call__(self, header: bytes, /) -> Tensor:
        """(bytes,) uint8 that will be filled."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a copy tells beside the state."""

    step: int
    captured_at: datetime
    data_cursor: dict[str, object]
    samples: int
    proof_after: int
    proof: Any


class CopyMaker:
    """Copies the state of one rank, one step at a time.

    Args:
        folder: of this pod.
        peers: the world.
        neighbours: the way to the next pod; None if there is one pod only.
        reporter: told what fails; training goes on.
        old: names of the copies that this generation went on from; they stay until there is a newer whole set.
    """

    def __init__(
        self,
        folder: CopyFolder,
        peers: Agreement,
        neighbours: Neighbours | None,
        reporter: StageReporter,
        old: Sequence[str] = (),
    ) -> None:
        self._folder, self._peers, self._neighbours, self._reporter = folder, peers, neighbours, reporter
        self._old = list(old)
        self._half, self._files = 0, dict[int, HostFile]()
        self._thread: threading.Thread | None = None
        self._done = False

    def take(self, state: ShardedState, moment: Moment) -> int:
        """Copy the state and start to pass it on; waits for the copy before, if that is still on its way. Collective.

        Returns:
            Microseconds for which the caller was held up.
        """
        began = time.monotonic_ns()
        if self._thread is not None:
            self._thread.join()
            # Only once all ranks have it the last copy is a set, and the one before may be written over.
            if bool(self._peers.table([float(self._done)]).min() > 0):
                self._forget_old()
                self._half = (self._half + 1) % HALVES
        rank = self._folder.member.rank
        own = self._folder.name(rank, self._half)
        self._folder.withdraw(own)
        self._done, self._thread = False, None
        try:
            file = self._file(state, own)
            for quantity in state.quantities:
                state.read(quantity, file.vector(quantity))
        except OSError as error:
            # The others must not wait for a copy that never comes.
            file = None
            self._tell(f"no room for a copy of the state in {self._folder.place}: {error}")
        self._thread = threading.Thread(
            target=self._pass_on, args=(own, file, state, moment), name="copies", daemon=True
        )
        self._thread.start()
        return (time.monotonic_ns() - began) // 1000

    def wait(self) -> None:
        """Until the last copy has gone where it is to go, or has failed."""
        if self._thread is not None:
            self._thread.join()

    def forget(self) -> None:
        """Remove the copies of this pod; after `wait`."""
        self._files.clear()
        self._folder.clear()

    def _file(self, state: ShardedState, name: str) -> HostFile:
        if self._half not in self._files:
            path = self._folder.data(name)
            self._files[self._half] = HostFile(state.quantities, packed_length(state.saved), path=path)
        return self._files[self._half]

    def _forget_old(self) -> None:
        for name in self._old:
            self._folder.withdraw(name)
            self._folder.data(name).unlink(missing_ok=True)
        self._old = []

    def _pass_on(self, own: str, file: HostFile | None, state: ShardedState, moment: Moment) -> None:
        """In the thread. Of `state` only what never changes is read here."""
        try:
            sealed = b"" if file is None else self._folder.seal(self._header(own, file, state, moment))
            if file is not None:
                self._folder.publish(own, sealed)
            if self._neighbours is not None:
                data = torch.empty(0, dtype=torch.uint8) if file is None else file.bytes_tensor
                self._take_in(self._neighbours.pass_on(sealed, data, self._place_of))
            self._done = file is not None
        except (OSError, RuntimeError, ValueError, TrainerError) as error:
            self._tell(f"step {moment.step} has no copy in the next pod: {error}")

    def _header(self, own: str, file: HostFile, state: ShardedState, moment: Moment) -> CopyHeader:
        member = self._folder.member
        return CopyHeader(
            run=member.run,
            stage=member.stage,
            config_hash=member.config_hash,
            generation=member.generation,
            step=moment.step,
            world_size=member.world_size,
            captured_at=moment.captured_at,
            data_cursor=moment.data_cursor,
            samples=moment.samples,
            proof_after=moment.proof_after,
            proof=moment.proof,
            file=file.described(own, member.rank, state.saved),
        )

    def _place_of(self, sealed: bytes) -> Tensor:
        """Where the bytes of the copy with that header go; the copy that was there counts no more."""
        file = self._folder.unseal(sealed).file
        self._folder.withdraw(file.name)
        return mapped_file(self._folder.data(file.name), file.bytes)

    def _take_in(self, sealed: bytes) -> None:
        """Make the copy of another pod count, once its bytes fit their checksums."""
        if not sealed:
            raise TrainerError("the pod before has none to send")
        header = self._folder.unseal(sealed)
        name = header.file.name
        if not self._folder.is_whole(name, header):
            raise TrainerError(f"what came of copy {name} does not fit its checksums")
        self._folder.publish(name, sealed)

    def _tell(self, message: str) -> None:
        self._reporter.housekeeping("copies", TrainerError(message))
