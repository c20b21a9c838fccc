"""One object that several processes write together: each its parts, and one of them the end.

In the object store it is S3's multipart upload, which obstore does not offer to more than one process; so boto3 asks
for it, with the repeats and errors of ObjectStore. On disk it is a file that takes its name at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import boto3
from botocore.config import Config

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.file_system import as_obstore, botocore_settings
from videotrain_trainer.files import local_path, put_in_place
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear, endpoint_of

Result = TypeVar("Result")
PART_BYTES: Final = 1 << 25
"""Of every part but the last: 32 MiB. S3 takes 5 MiB or more, and 10,000 parts."""


class StoredPart(NamedTuple):
    """A part that is in place."""

    number: int
    """From 0; in this order the parts make the object."""
    etag: str


class AssembledObject:
    """An object in the making. Its `upload` is all that other processes need to take part.

    Args:
        store: object store.
        uri: of the object.
        upload: of the one that began it, as it tells.
    """

    def __init__(self, store: ObjectStore, uri: str, upload: str) -> None:
        self._store, self.uri, self.upload = store, uri, upload
        self._client: Any = None

    @classmethod
    def begin(cls, store: ObjectStore, uri: str) -> AssembledObject:
        """Begin an object; what dead processes left of one in its place is removed."""
        if uri.startswith("file://"):
            path = local_path(uri)
            partial = path.with_name(f".parts-{path.name}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(b"")
            return cls(store, uri, str(partial))

        def begin(client: Any, bucket: str, key: str) -> str:
            left = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
            for upload in left:
                if upload["Key"] == key:
                    client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
            return str(client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])

        made = cls(store, uri, "")
        made.upload = made._ask(begin)
        return made

    def put(self, number: int, data: bytes) -> StoredPart:
        """Store a part, which begins PART_BYTES times its number behind the start; again if need be."""
        if self.uri.startswith("file://"):
            path = Path(self.upload)
            with disk_full_is_clear(path), path.open("r+b") as file:
                file.seek(number * PART_BYTES)
                file.write(data)
            return StoredPart(number, "")

        def put(client: Any, bucket: str, key: str) -> str:
            answer = client.upload_part(Bucket=bucket, Key=key, UploadId=self.upload, PartNumber=number + 1, Body=data)
            return str(answer["ETag"])

        return StoredPart(number, self._ask(put))

    def finish(self, parts: Sequence[StoredPart]) -> None:
        """Make the object of all its parts; nobody sees it before."""
        if self.uri.startswith("file://"):
            put_in_place(Path(self.upload), local_path(self.uri))
            return
        listed = [{"PartNumber": part.number + 1, "ETag": part.etag} for part in sorted(parts)]

        def finish(client: Any, bucket: str, key: str) -> None:
            client.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=self.upload, MultipartUpload={"Parts": listed}
            )

        self._ask(finish)

    def _ask(self, request: Callable[[Any, str, str], Result]) -> Result:
        bucket, _, key = self.uri.removeprefix("s3://").partition("/")

        def ask(storage: Storage) -> Result:
            # One that failed is made anew, with credentials that are read anew.
            client, self._client = self._client or _client(storage), None
            with as_obstore():
                answer = request(client, bucket, key)
            self._client = client
            return answer

        return self._store.read_by(self.uri, ask)


def _client(storage: Storage) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_of(storage),
        region_name=storage.region,
        config=Config(**botocore_settings()),
    )
