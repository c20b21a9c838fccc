"""Access to a run's object store, and the check that it can be used, before anything starts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from videotrain.processes.podfiles import secret_value
from videotrain_api.resource.trainrun import Storage, VideoTrainingRun
from videotrain_api.schema import Json

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
