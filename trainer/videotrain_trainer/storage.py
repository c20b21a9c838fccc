"""The object store behind s3:// and file:// URIs.

Objects go through obstore, whose client releases the GIL, retries with back-off and uploads in parts. Its threads do
not survive a fork: a child forked after the first request would wait for ever, so it is told instead. Fork before the
first request, or spawn.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import (
    AlreadyExists,
    BucketMissing,
    ConfigError,
    DiskFull,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
    TrainerError,
)
from videotrain_trainer.hub import hub_file, hub_files, is_hub

Result = TypeVar("Result")
ATTEMPTS = 3
"""Requests that may be carried out twice are repeated. obstore does so until an answer has begun, for some faults."""
PUT_ONCE_ATTEMPTS = 5
RETRIES = {
    "max_retries": 14,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=4), "base": 3},
}
"""About 15 s of trying with jitter, so that a server's restart goes unnoticed and a dead one is told soon."""
CONNECTION = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=60),
    "timeout": timedelta(days=1),
}
"""An answer may be silent for a minute, before its first byte and between any two; as long as it moves it may take what
it takes, for a table of a hundred million clips is one object."""
DENIED_SECONDS = 60.0
"""A request that is denied is asked again for so long, with credentials that are read anew: rights and keys need time
to be known everywhere, clocks to be set, and short-lived keys to be replaced."""
LONGEST_PAUSE_SECONDS = 8.0
"""Between two askings of a request that is denied."""
FETCH_BYTES = 64 * 1024**2
"""Objects are copied to files in ranges of this size, so that a 10 GB file needs little memory."""
NO_SPACE_SIGNS = ("os error 28", "No space left", "507 Insufficient Storage", "XMinioStorageFull", "QuotaExceeded")
DENIED_CODES = (
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
"""What S3 calls a refusal of credentials; expired ones come with status 400 from AWS."""
DENIED = re.compile(rf"status code: 40[13]\b|status code: 400 Bad Request:?$|<Code>(?:{'|'.join(DENIED_CODES)})</Code>")
"""The answer to HEAD has no body, so that its 400 does not say that a token is expired; our requests are never bad."""

_PART = re.compile(r"#bytes=(\d+)-(\d+)$")
_UNKNOWN = datetime.fromtimestamp(0, UTC)
"""When a file of a hub was changed, which its listing does not tell; its tag changes with its content."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object that a listing found, without its content."""

    uri: str
    size: int
    """Bytes."""
    etag: str
    modified: datetime


@dataclass(frozen=True)
class _Place:
    """A URI taken apart: which client serves it, and under which key."""

    scheme: str
    bucket: str
    key: str
    root: str
    """What stands before a key in a URI."""


Request = Callable[[Any, str], Result]
"""A call of obstore with a client and a key."""


class ObjectStore:
    """Whole-object and range access by URI. Safe to use from any thread; pickles without its clients.

    Args:
        storage: endpoint, region and the source of the credentials.
        patience: for so many seconds a request that is denied is asked again.
    """

    def __init__(self, storage: Storage, patience: float | None = None) -> None:
        self._storage = storage
        self._patience = DENIED_SECONDS if patience is None else patience
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str], Any] = {}

    @classmethod
    def for_storage(cls, storage: Storage) -> ObjectStore:
        """The store of a run. Nothing is contacted until the first request."""
        return cls(storage)

    def __getstate__(self) -> tuple[Storage, float]:
        return self._storage, self._patience

    def __setstate__(self, state: tuple[Storage, float]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def get(self, uri: str) -> bytes:
        """The whole object, or its part in one request if the URI ends as `part_uri` has it.

        Raises:
            ObjectMissing: there is none.
        """
        if part := _PART.search(uri):
            first, last = int(part.group(1)), int(part.group(2))
            return self.get_range(uri[: part.start()], first, last - first + 1)
        return self._retry(uri, lambda client, key: bytes(obstore.get(client, key).bytes()))

    def get_range(self, uri: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer if the object ends before. One request."""
        return self._retry(uri, lambda client, key: bytes(obstore.get_range(client, key, start=offset, length=length)))

    def fetch(self, found: ObjectInfo, path: Path) -> None:
        """Copy a listed object to a file, in ranges; an object of another size than was listed is not taken for whole.

        Raises:
            StorageUnavailable: every reading gave fewer bytes than were listed.
        """
        with path.open("wb") as file:
            for offset in range(0, found.size, FETCH_BYTES):
                length = min(FETCH_BYTES, found.size - offset)
                parts = (self.get_range(found.uri, offset, length) for _ in range(ATTEMPTS))
                whole = next((part for part in parts if len(part) == length), None)
                if whole is None:
                    raise StorageUnavailable(
                        f"{found.uri}: {found.size} bytes were listed, and the {length} bytes from {offset} on do not "
                        f"come, asked {ATTEMPTS} times; the object was replaced meanwhile, or the object store at "
                        f"{self._where()} cuts answers short"
                    )
                file.write(whole)

    def read_by(self, uri: str, request: Callable[[Storage], Result]) -> Result:
        """What another client of this store reads, which raises obstore's errors: repeated like any reading."""
        return self._retry(uri, lambda *_: request(self._storage))

    def put(self, uri: str, data: bytes | memoryview | Path, only_if_absent: bool = False) -> str:
        """Write an object in one piece: nobody ever sees a part of it. Large ones are uploaded in parts.

        Returns:
            The entity tag.

        Raises:
            AlreadyExists: `only_if_absent` and there is an object. After a broken connection it may be our own.
        """
        _refuse_hub(uri)

        def write(client: Any, key: str) -> str:
            try:
                written = obstore.put(client, key, data, mode="create" if only_if_absent else "overwrite")
            except FileNotFoundError as error:
                raise GenericError(f"upload not found: {error}") from error
            return _bare(written["e_tag"])

        return (self._ask if only_if_absent else self._retry)(uri, write)

    def put_once(self, uri: str, data: bytes) -> None:
        """Write a small object that must not be there yet, and see it stored.

        An answer that is lost or that refuses (409, 412) is no end: what is stored is compared with `data`, so writing
        the same bytes twice is fine, by whomever.

        Raises:
            AlreadyExists: another object is in its place; it was read twice.
            StorageUnavailable: it is not stored after PUT_ONCE_ATTEMPTS requests.
        """
        trouble: TrainerError = StorageUnavailable(f"{uri}: was accepted {PUT_ONCE_ATTEMPTS} times, and is not stored")
        differs = 0
        for attempt in range(PUT_ONCE_ATTEMPTS):
            time.sleep(0.2 * 2**attempt if attempt else 0)
            try:
                self.put(uri, data, only_if_absent=True)
            except (AlreadyExists, StorageUnavailable) as error:
                trouble = error
            try:
                if (self.reconnected() if differs else self).get(uri) == data:
                    return
            except ObjectMissing:
                continue
            differs += 1
            if differs == 2:
                raise AlreadyExists(f"{uri}: another object is in this place")
        if isinstance(trouble, AlreadyExists):
            raise StorageUnavailable(f"{uri}: cannot be written for an object that cannot be read") from trouble
        raise trouble

    def copy(self, source: str, target: str) -> None:
        """Copy an object within its store, whose bytes this machine does not see; replaces one in its place.

        Raises:
            ObjectMissing: there is no `source`.
        """
        self._retry(source, lambda client, key: obstore.copy(client, key, _parse(target).key))

    def reconnected(self) -> Self:
        """The same store through connections of its own: what one connection spoils, another may give whole."""
        return type(self)(self._storage, self._patience)

    def list_some(self, prefix: str, after: str | None, most: int) -> list[ObjectInfo]:
        """The first objects below a folder, in the store's order; all that are left if fewer than `most` come.

        Args:
            prefix: the folder.
            after: URI of the object behind which the listing begins; the first one if None.
            most: number of objects. More than the 1,000 of an S3 answer take several requests.
        """
        if is_hub(prefix):
            return [found for found in self.list(prefix) if after is None or found.uri > after][:most]
        place, offset = _parse(prefix), None if after is None else _parse(after).key

        def first(client: Any, key: str) -> list[ObjectInfo]:
            found: list[ObjectInfo] = []
            for page in obstore.list(client, prefix=key or None, offset=offset, chunk_size=most):
                found += [_info(place, row) for row in page]
                if len(found) >= most:
                    break
            return found[:most]

        return self._retry(prefix, first)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders that lie directly in one, sorted: a request for each thousand, whatever is in them."""

        def names(client: Any, key: str) -> list[str]:
            found = obstore.list_with_delimiter(client, prefix=key or None)["common_prefixes"]
            return [folder.rstrip("/").rsplit("/", 1)[-1] for folder in found]

        return sorted(self._retry(prefix, names))

    def list(self, prefix: str) -> list[ObjectInfo]:
        """All objects below a folder, sorted by URI; none if the folder does not exist."""
        if is_hub(prefix):
            return [ObjectInfo(uri=f.uri, size=f.size, etag=f.tag, modified=_UNKNOWN) for f in hub_files(prefix)]
        place = _parse(prefix)

        def pages(client: Any, key: str) -> list[ObjectInfo]:
            return [_info(place, row) for page in obstore.list(client, prefix=key or None) for row in page]

        return sorted(self._retry(prefix, pages), key=lambda found: found.uri)

    def exists(self, uri: str) -> bool:
        """Is there such an object?"""
        try:
            self._retry(uri, obstore.head)
        except ObjectMissing:
            return False
        return True

    def stat(self, uri: str) -> ObjectInfo:
        """Size, entity tag and time of an object.

        Raises:
            ObjectMissing: there is none.
        """
        place = _parse(uri)
        return self._retry(uri, lambda client, key: _info(place, obstore.head(client, key)))

    def delete(self, uri: str) -> None:
        """Remove an object; a missing one is fine."""
        _refuse_hub(uri)
        try:
            self._retry(uri, obstore.delete)
        except ObjectMissing:
            return

    def check(self) -> None:
        """Ask for one listing, so that a wrong secret or a missing bucket is told before any work is done.

        Some servers make a missing bucket on the first write, which would hide a typing error for ever.

        Raises:
            StorageDenied: credentials are refused or the bucket does not exist.
            StorageUnavailable: the endpoint does not answer.
        """
        self._retry(self._storage.uri, lambda client, key: next(iter(obstore.list(client, prefix=key or None)), None))

    def _open(self, place: _Place) -> Any:
        with self._lock:
            _same_process()
            where = (place.scheme, place.bucket)
            if where not in self._clients:
                self._clients[where] = self._connect(place)
            return self._clients[where]

    def _forget(self, place: _Place, client: Any) -> None:
        """Have the next request make a client anew, with credentials that are read anew."""
        with self._lock:
            if self._clients.get((place.scheme, place.bucket)) is client:
                del self._clients[place.scheme, place.bucket]

    def _connect(self, place: _Place) -> Any:
        from obstore.store import LocalStore, S3Store

        if place.scheme == "file":
            return LocalStore()
        url = endpoint_of(self._storage)
        return S3Store(
            place.bucket,
            region=self._storage.region,
            virtual_hosted_style_request=False,
            credential_provider=_credentials(),
            client_options={"allow_http": bool(url and url.startswith("http://")), **CONNECTION},
            retry_config=RETRIES,
            **({"endpoint": url} if url else {}),
        )

    def _retry(self, uri: str, request: Request[Result]) -> Result:
        """A request that may be carried out twice. That there is no such object is believed of two answers."""
        absent = 0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(uri, request)
            except ObjectMissing:
                absent += 1
                if absent == 2 or attempt == ATTEMPTS:
                    raise
            except (AlreadyExists, StorageUnavailable) as error:
                # obstore names its max_retries when it has waited long enough; botocore gives up after seconds.
                if attempt == ATTEMPTS or "max_retries" in str(error):
                    raise StorageUnavailable(f"{error}; asked {attempt} times, on no condition") from error
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _ask(self, uri: str, request: Request[Result]) -> Result:
        """One request, repeated while it is denied and patience lasts: what is denied was not done."""
        place, begin, pause = _parse(uri), time.monotonic(), 0.25
        while True:
            client = self._open(place)
            try:
                with self._errors(uri):
                    return request(client, place.key)
            except BucketMissing:
                raise
            except StorageDenied as error:
                if place.scheme == "file" or time.monotonic() - begin + pause > self._patience:
                    raise
                log.warning("asked again in %g s: %s", pause, error)
                self._forget(place, client)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    @contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError, OSError) as error:
            raise self._translate(uri, error) from error

    def _translate(self, uri: str, error: Exception) -> TrainerError:
        text = str(error).split("\n\nDebug source", 1)[0].replace("\n", " ").strip()
        if isinstance(error, AlreadyExistsError | PreconditionError):
            return AlreadyExists(f"{uri}: there is already an object in this place")
        if "NoSuchBucket" in text:
            own = _parse(uri).bucket == _parse(self._storage.uri).bucket
            field = f"spec.storage.uri (now {self._storage.uri!r})" if own else "the field of the run that names it"
            return BucketMissing(f"{uri}: the bucket does not exist at {self._where()}; create it or correct {field}")
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(f"{uri}: there is no such object")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or DENIED.search(text):
            return self._denied(uri, text)
        if any(sign in text for sign in NO_SPACE_SIGNS) or getattr(error, "errno", None) == errno.ENOSPC:
            return DiskFull(f"{uri}: no space left to write; free space behind spec.storage.uri: {text}")
        if isinstance(error, GenericError | OSError):
            return StorageUnavailable(f"{uri}: the object store at {self._where()} keeps failing: {text}")
        return StorageUnavailable(f"{uri}: the request failed: {text}")

    def _denied(self, uri: str, text: str) -> StorageDenied:
        secret = self._storage.credentials_secret
        source = f"the Secret {secret!r} (spec.storage.credentialsSecret)" if secret else "the pod's identity"
        return StorageDenied(
            f"{uri}: access denied by {self._where()}. Credentials come from {source}; check its keys and what they "
            f"may do in the bucket of spec.storage.uri. Server's answer: {text}"
        )

    def _where(self) -> str:
        return endpoint_of(self._storage) or f"AWS S3 ({self._storage.region})"


def endpoint_of(storage: Storage) -> str | None:
    """Where s3:// URIs lead: the run's endpoint, else the environment's as every AWS SDK reads it; None is AWS itself.

    Asked in one place, so that the clients of all libraries agree.
    """
    from_environment = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    return storage.endpoint_url or next((url for url in from_environment if url), None)


def user_cache() -> Path:
    """Where files that can be made again are kept on this machine, outside of pods."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videotrain"


@contextmanager
def disk_full_is_clear(path: Path) -> Iterator[None]:
    """Turns the kernel's `no space left` below `path` into DiskFull; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: no space left on the pod's disk; free some or give the pod more") from error
        raise


_used_in: list[int] = []
"""Process that made the first client, if any; obstore's threads live there."""


def _same_process() -> None:
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise StorageUnavailable(
            f"process {os.getpid()} was forked from {_used_in[0]} after that one had used the object store; "
            "fork before the first request or start processes by spawn"
        )


def part_uri(uri: str, offset: int, length: int) -> str:
    """Names bytes of an object, which `ObjectStore.get` reads, as HTTP writes ranges: the last byte is included."""
    return f"{uri}#bytes={offset}-{offset + length - 1}"


def _parse(uri: str) -> _Place:
    scheme, found, rest = uri.partition("://")
    if is_hub(uri):
        return _Place("file", "", str(hub_file(uri)).strip("/"), "file:///")
    if not found or scheme not in ("s3", "file"):
        raise ConfigError(f"{uri}: a URI must start with s3://, file:// or hf://")
    if scheme == "file":
        return _Place("file", "", unquote(rest).strip("/"), "file:///")
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if any(part in ("", ".", "..") for part in key.split("/")) and key:
        raise ConfigError(f"{uri}: no part of the path of an object may be empty, '.' or '..'")
    return _Place("s3", bucket, key, uri[: len(uri.rstrip("/")) - len(key)])


def _refuse_hub(uri: str) -> None:
    """What is written there would change the cache of the hub's client."""
    if is_hub(uri):
        raise ConfigError(f"{uri}: nothing is written to the hub; name a place in the bucket, s3://")


def _info(place: _Place, row: Any) -> ObjectInfo:
    path = quote(row["path"]) if place.scheme == "file" else row["path"]
    return ObjectInfo(uri=place.root + path, size=row["size"], etag=_bare(row["e_tag"]), modified=row["last_modified"])


def _bare(etag: str | None) -> str:
    """Entity tags come with the quotes of their HTTP header."""
    return (etag or "").strip('"')


def _credentials() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError as error:
        raise StorageDenied(
            "no credentials for the object store: name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in "
            "spec.storage.credentialsSecret, or give the pod an identity"
        ) from error
