"""The keys by which this command reaches a run's object store."""

import base64
from urllib.parse import parse_qs, urlsplit

import pytest

from videotrain.objectstore.s3_client import external_credentials, s3_client
from videotrain_api.resource.trainrun import Storage

STORAGE = Storage(uri="s3://bucket/runs", endpoint_url="http://127.0.0.1:9")


@pytest.fixture
def temporary_keys(monkeypatch):
    """As a single sign-on leaves them."""
    for name, value in (("ACCESS_KEY_ID", "ASIA1"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "token-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


def signed_with(credentials):
    """Key and token of a signed request."""
    client = s3_client(STORAGE.endpoint_url, credentials, STORAGE.region)
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    query = parse_qs(urlsplit(url).query)
    token = query.get("X-Amz-Security-Token") or query.get("x-amz-security-token")
    key = (query.get("AWSAccessKeyId") or query["X-Amz-Credential"])[0].partition("/")[0]
    return key, token


def test_requests_with_temporary_keys_have_their_token(temporary_keys):
    assert signed_with(external_credentials(STORAGE, ())) == ("ASIA1", ["token-1"])


def test_keys_of_a_secret_have_none_of_this_account_s(temporary_keys):
    named = STORAGE.model_copy(update={"credentials_secret": "keys"})
    data = {"AWS_ACCESS_KEY_ID": "AKIA2", "AWS_SECRET_ACCESS_KEY": "other"}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    secret = {"kind": "Secret", "metadata": {"name": "keys"}, "data": encoded}
    assert signed_with(external_credentials(named, [secret])) == ("AKIA2", None)
