"""The workers' end of the record files: one JSON document per line, each written with one call."""

from __future__ import annotations

import os
import threading

from videotrain_api.records import ProfileRecord, StartedRecord, StepRecord, TrainerRecord, WorkerExit
from videotrain_trainer.worker.pod import RunFiles, write_atomically


class RecordFile:
    """Record sink of one worker: appends to records-<generation>-<local rank>.jsonl on local rank 0.

    A line goes to the kernel in one write, so it survives the death of this process; only a full disk tears one. So the
    few records that are of one rank alone can come from any: the kernel puts each behind what is there.
    """

    def __init__(self, files: RunFiles, generation: int, local_rank: int) -> None:
        self._files = files
        self._local_rank = local_rank
        self._lock = threading.Lock()
        self._step = 0
        files.directory.mkdir(parents=True, exist_ok=True)
        self._path = files.records(generation, 0)
        self._file = self._path.open("ab", buffering=0) if local_rank == 0 else None

    @property
    def step(self) -> int:
        """Last finished step, or the step that the generation resumed from."""
        return self._step

    def write(self, record: TrainerRecord) -> None:
        """Append a record, or write exit-<generation>-<local rank>.json for a WorkerExit; safe from any thread.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        if isinstance(record, WorkerExit):
            path = self._files.exit(record.generation, record.local_rank)
            write_atomically(path, record.model_dump_json(by_alias=True, exclude_none=True))
            return
        with self._lock:
            if isinstance(record, StartedRecord):
                self._step = record.resumed_step
            if isinstance(record, StepRecord):
                self._step = record.step
            if self._file is not None:
                self._append(self._file.fileno(), record)
            elif isinstance(record, ProfileRecord):
                with self._path.open("ab", buffering=0) as file:
                    self._append(file.fileno(), record)

    @staticmethod
    def _append(descriptor: int, record: TrainerRecord) -> None:
        line = record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
        while line:
            line = line[os.write(descriptor, line) :]
