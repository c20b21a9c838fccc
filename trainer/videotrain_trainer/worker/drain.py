"""SIGTERM as a request to stop at the next step boundary, agreed on by the whole world."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _disown() -> None:
    """A helper process that the task forks shares the socket: its own SIGTERM must end it and not reach this worker."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release_sigterm()


class SignalDrain:
    """The Drain of a worker process.

    Python runs signal handlers between bytecodes of the main thread, which may sit in a collective for minutes; the
    wake-up descriptor is written by the C handler at once, so a thread of ours learns of the signal in any case.
    """

    def __init__(self, leave_early: Callable[[], None]) -> None:
        """Install the handler; call from the main thread.

        Args:
            leave_early: Ends the process; called from a thread if SIGTERM comes before `started`, when there is
                nothing to save and the peers may never come.
        """
        self._leave_early = leave_early
        self._requested = threading.Event()
        self._started = threading.Event()
        self._device = torch.device("cpu")
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(before=_hold_sigterm, after_in_parent=_release_sigterm, after_in_child=_disown)
        threading.Thread(target=self._listen, name="drain", daemon=True).start()

    def _listen(self) -> None:
        while signals := self._reader.recv(64):
            if signal.SIGTERM in signals:
                self._requested.set()
                if not self._started.is_set():
                    self._leave_early()

    def started(self, device: torch.device) -> None:
        """The process group is ready; from now on the world leaves together.

        Args:
            device: Where the flag is reduced: the device of the process group's backend.
        """
        self._device = device
        self._started.set()

    def requested(self) -> bool:
        """This process was asked. Not collective."""
        return self._requested.is_set()

    def agreed(self) -> bool:
        """Any process of the world was asked. Collective: every rank calls it at the same place."""
        flag = torch.tensor(self.requested(), dtype=torch.int32, device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
