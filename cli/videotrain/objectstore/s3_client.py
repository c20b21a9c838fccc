"""Access to a run's object store, and the check that it can be used, before anything starts."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from videotrain.processes.podfiles import secret_value
from videotrain_api.resource.trainrun import Storage, VideoTrainingRun
from videotrain_api.schema import Json

ATTEMPTS: Final = 7
"""Requests, in all, before an object store counts as one that cannot answer."""
PAUSE_SECONDS: Final = 0.1
"""Before the second request, and twice as long before each further one: 6 s in all."""
MISSING_ANSWERS: Final = 2
"""How many must say that there is no object."""
STORE_ERRORS: Final = (BotoCoreError, Boto3Error, ClientError)
"""What boto3 raises for a request that failed."""
Answer = TypeVar("Answer")
KEY_ID, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


class Credentials(NamedTuple):
    """Access key and secret key of an S3 account."""

    access_key: str
    secret_key: str
    session_token: str | None = None
    """Of keys that expire, such as those of a single sign-on."""

    def environment(self) -> dict[str, str]:
        """The variables by which every AWS client finds them."""
        keys = {KEY_ID: self.access_key, SECRET_KEY: self.secret_key}
        return keys if self.session_token is None else keys | {SESSION_TOKEN: self.session_token}


class StorageError(Exception):
    """The run's object store cannot be used; the message names the field to change."""


def bucket_of(uri: str) -> str:
    """The bucket of a URI: `b` of `s3://b/prefix`."""
    return urlsplit(uri).netloc


def s3_client(endpoint_url: str | None, credentials: Credentials, region: str, timeout_seconds: float = 10) -> Any:
    """A boto3 client that answers within the timeout and does not retry."""
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=timeout_seconds, read_timeout=timeout_seconds,
        s3={"addressing_style": "path"} if endpoint_url else {},
    )  # fmt: skip
    return boto3.client(
        "s3", endpoint_url=endpoint_url, region_name=region, config=config,
        aws_access_key_id=credentials.access_key, aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.session_token,
    )  # fmt: skip


def repeated(request: Callable[[], Answer]) -> Answer:
    """The answer to a request that may be sent twice: one that fails is sent again, whatever the reason.

    Raises:
        ClientError: it was refused at last, or MISSING_ANSWERS say that there is no such object.
        BotoCoreError: there was no answer at last, or none that was whole.
        Boto3Error: likewise, of a download in parts.
    """
    missing = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except STORE_ERRORS as error:
            missing += is_missing(error)
            if attempt == ATTEMPTS or missing == MISSING_ANSWERS:
                raise
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def is_missing(error: Exception) -> bool:
    """Whether it says that there is no such object."""
    answer = error.response if isinstance(error, ClientError) else {}
    return str(answer.get("Error", {}).get("Code", "")) in {"NoSuchKey", "404", "NotFound"}


def is_external(run: VideoTrainingRun, secrets: Sequence[Json]) -> bool:
    """The manifest brings an object store of its own: an endpoint, or the Secret that it names."""
    storage = run.spec.storage
    names = [secret["metadata"]["name"] for secret in secrets]
    return storage.endpoint_url is not None or storage.credentials_secret in names


def external_credentials(storage: Storage, secrets: Sequence[Json]) -> Credentials:
    """The keys that a manifest with an object store of its own gives.

    Raises:
        StorageError: there are none; the message says where to write them.
    """
    field = "spec.storage.credentialsSecret"
    if storage.credentials_secret is None:
        found = boto3.Session().get_credentials()
        if found is None:
            raise StorageError(f"{field}: not set, and this account has no AWS credentials; name a Secret in the file")
        keys = found.get_frozen_credentials()
        return Credentials(str(keys.access_key), str(keys.secret_key), keys.token)
    for secret in secrets:
        if secret["metadata"]["name"] == storage.credentials_secret:
            return Credentials(*(_key(secret, key, field) for key in (KEY_ID, SECRET_KEY)))
    raise StorageError(
        f"{field}: {storage.credentials_secret!r}: the file holds no Secret of this name; add it as a further document"
    )


def _key(secret: Json, key: str, field: str) -> str:
    value = secret_value(secret, key)
    if not value:
        raise StorageError(f"{field}: {secret['metadata']['name']!r}: the Secret has no key {key}; it needs {KEY_ID} "
                           f"and {SECRET_KEY}")  # fmt: skip
    return value


def check_bucket(storage: Storage, credentials: Credentials) -> None:
    """Ask the object store for the bucket.

    Raises:
        StorageError: it cannot be reached, refuses the keys or has no such bucket.
    """
    bucket = bucket_of(storage.uri)
    where = storage.endpoint_url or "AWS"
    try:
        s3_client(storage.endpoint_url, credentials, storage.region).head_bucket(Bucket=bucket)
    except EndpointConnectionError as error:
        raise StorageError(f"spec.storage.endpointUrl: {where!r}: cannot be reached: {error}") from None
    except ClientError as error:
        raise StorageError(_refusal(error, bucket, where, storage, credentials)) from None
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"spec.storage.endpointUrl: {where!r}: {error}; give http(s)://HOST[:PORT]") from None


def _refusal(error: ClientError, bucket: str, where: str, storage: Storage, credentials: Credentials) -> str:
    code = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == 404:
        return (
            f"spec.storage.uri: {storage.uri!r}: bucket {bucket!r} does not exist at {where}; create it or name another"
        )
    if code in (401, 403):
        name = storage.credentials_secret or "the account's own credentials"
        return (
            f"spec.storage.credentialsSecret: {name!r}: {where} refuses key {credentials.access_key!r} "
            f"for bucket {bucket!r}; check {KEY_ID} and {SECRET_KEY}"
        )
    return f"spec.storage.endpointUrl: {where!r}: answered {code} for bucket {bucket!r}: {error}"


def secret_manifest(name: str, namespace: str, credentials: Credentials) -> Json:
    """A Secret with the keys, as pods read them."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in credentials.environment().items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}
