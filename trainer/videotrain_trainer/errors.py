"""Failures that a user or the operator acts on, each with its exit code."""

from __future__ import annotations

from typing import ClassVar

from videotrain_api.vocabulary import ExitCode


class TrainerError(Exception):
    """Ends the process with `exit_code`; the message is shown to people as it is."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL


class ConfigError(TrainerError):
    """The stage configuration cannot be run."""

    exit_code = ExitCode.CONFIG


class DataError(TrainerError):
    """Data are missing, empty or damaged beyond the skip limit."""

    exit_code = ExitCode.DATA


class DamagedObject(DataError):
    """What this machine reads of an object does not fit what was written, however often it is read. One reader cannot
    tell whether the object or its own machine is at fault, so the machine is replaced first.
    """

    exit_code = ExitCode.CHECKPOINT


class StorageUnavailable(TrainerError):
    """The object store cannot be reached or keeps failing."""

    exit_code = ExitCode.STORAGE


class StorageDenied(TrainerError):
    """The object store refuses the credentials, or the bucket does not exist."""

    exit_code = ExitCode.PERMISSION


class BucketMissing(StorageDenied):
    """There is no such bucket; asking again with other credentials cannot help."""


class ObjectMissing(TrainerError):
    """An object that should exist does not."""

    exit_code = ExitCode.DATA


class AlreadyExists(TrainerError):
    """A conditional write found an object in its place."""

    exit_code = ExitCode.STORAGE


class DiskFull(TrainerError):
    """No space left for scratch or cache."""

    exit_code = ExitCode.DISK_FULL


class Diverged(TrainerError):
    """The loss is not finite."""

    exit_code = ExitCode.DIVERGED


class GradientsLost(TrainerError):
    """The engine's gradients are not the sums that they should be."""

    exit_code = ExitCode.GRADIENTS


class Fenced(TrainerError):
    """A newer generation exists; this one must not write."""

    exit_code = ExitCode.FENCED


class PeerLost(TrainerError):
    """A collective failed because another worker went away."""

    exit_code = ExitCode.PEER_LOST
