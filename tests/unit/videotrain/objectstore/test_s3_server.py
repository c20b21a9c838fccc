"""The embedded object store is a real server; a manifest's own one is checked before use."""

import psutil
import pytest

from videotrain.objectstore.s3_client import Credentials, StorageError, check_bucket, s3_client
from videotrain.objectstore.s3_server import ObjectServer
from videotrain_api.resource.trainrun import Storage
from videotrain_api.vocabulary import ENV_POD_ROOT


def processes_of(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ENV_POD_ROOT) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.slow
async def test_objects_keys_and_endpoint_survive_a_kill_and_wrong_use_is_explained(tmp_path):
    first = await ObjectServer.start(tmp_path, "s3://some-bucket/prefix")
    client = s3_client(first.endpoint_url, first.credentials, "us-east-1")
    client.put_object(Bucket="some-bucket", Key="a/b", Body=b"kept")
    for process in processes_of(tmp_path / "s3"):
        process.kill()
    await first.stop()

    second = await ObjectServer.start(tmp_path, "s3://some-bucket/prefix")
    try:
        assert (second.endpoint_url, second.credentials) == (first.endpoint_url, first.credentials)
        assert client.get_object(Bucket="some-bucket", Key="a/b")["Body"].read() == b"kept"
        storage = Storage(uri="s3://some-bucket/x", endpoint_url=second.endpoint_url, credentials_secret="keys")
        check_bucket(storage, second.credentials)
        with pytest.raises(StorageError, match=r"spec.storage.uri: .* bucket 'other-bucket' does not exist"):
            check_bucket(storage.model_copy(update={"uri": "s3://other-bucket"}), second.credentials)
        with pytest.raises(StorageError, match=r"spec.storage.credentialsSecret: 'keys': .* refuses key"):
            check_bucket(storage, Credentials(second.credentials.access_key, "wrong"))
        with pytest.raises(StorageError, match=r"spec.storage.credentialsSecret: 'keys': .* refuses key 'stranger'"):
            check_bucket(storage, Credentials("stranger", "wrong"))
    finally:
        await second.stop()
    assert processes_of(tmp_path / "s3") == []
    assert (tmp_path / "s3" / "credentials.json").stat().st_mode & 0o077 == 0


def test_an_unreachable_endpoint_is_named():
    storage = Storage(uri="s3://some-bucket", endpoint_url="http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"spec.storage.endpointUrl: 'http://127.0.0.1:1': cannot be reached"):
        check_bucket(storage, Credentials("a", "b"))
