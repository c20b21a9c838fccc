"""Files of the object store, for libraries that seek in files or take folders of them; the rest goes through `storage`.

s3fs has retries, errors and caches of its own; what comes out of here are the errors and the repeats of ObjectStore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from obstore.exceptions import GenericError, PermissionDeniedError
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.files import local_path
from videotrain_trainer.hub import hub_file, is_hub
from videotrain_trainer.storage import CONNECTION, DENIED_CODES, ObjectStore, endpoint_of

Result = TypeVar("Result")


def read_files(store: ObjectStore, uri: str, read: Callable[[AbstractFileSystem, str], Result]) -> Result:
    """What `read` makes of a file system and the path in it.

    Args:
        store: whose endpoint, credentials, patience and errors hold.
        uri: s3:// or file:// URI of a file or folder.
        read: is called again, with connections of its own, where a reading of ObjectStore would be repeated.

    Raises:
        ObjectMissing: there is no such file.
        StorageDenied: access is denied, for as long as the store is patient.
        StorageUnavailable: the store cannot be reached, or keeps failing.
    """
    if is_hub(uri):
        return store.read_by(uri, lambda _: read(LocalFileSystem(), str(hub_file(uri))))
    if uri.startswith("file://"):
        return store.read_by(uri, lambda _: read(LocalFileSystem(), str(local_path(uri))))

    def request(storage: Storage) -> Result:
        with as_obstore():
            return read(_s3(storage), uri.removeprefix("s3://").rstrip("/"))

    return store.read_by(uri, request)


def botocore_settings() -> dict[str, Any]:
    """Arguments of botocore's Config, so that its clients wait and address as ObjectStore does."""
    seconds = {name: CONNECTION[name].total_seconds() for name in ("connect_timeout", "read_timeout")}
    return {**seconds, "s3": {"addressing_style": "path"}}


def _s3(storage: Storage) -> AbstractFileSystem:
    return S3FileSystem(
        endpoint_url=endpoint_of(storage),
        client_kwargs={"region_name": storage.region},
        config_kwargs=botocore_settings(),
        skip_instance_cache=True,  # credentials and connections of its own
        use_listings_cache=False,
    )


@contextmanager
def as_obstore() -> Iterator[None]:
    """Raises the errors of s3fs and botocore as those that ObjectStore knows, with the code that the server gave."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_text(error)) from error
    except (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS) as error:
        # The answer to HEAD has a status only; our requests are never bad, so that 400 tells of a token that expired.
        denied = isinstance(error, PermissionError) or _code(error) in (*DENIED_CODES, "400", "401", "403")
        raise (PermissionDeniedError if denied else GenericError)(_text(error)) from error


def _answer(error: BaseException) -> ClientError | None:
    cause = error if isinstance(error, ClientError) else error.__cause__
    return cause if isinstance(cause, ClientError) else None


def _code(error: BaseException) -> str:
    answer = _answer(error)
    details: dict[str, Any] = answer.response if answer is not None else {}
    return str(details.get("Error", {}).get("Code", ""))


def _text(error: BaseException) -> str:
    answer = _answer(error)
    return str(error) if answer is None or answer is error else f"{error}: {answer}"
