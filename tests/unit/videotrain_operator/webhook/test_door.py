"""The webhook's door, real HTTPS on loopback: whatever comes in, it goes on answering, in bounded memory."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.manifests_strategy import review_body
from support.webhook_store import WebhookStore

from videotrain_operator import http_server
from videotrain_operator.webhook import server as server_module
from videotrain_operator.webhook.certificates import certificates_pem, key_pem, new_authority
from videotrain_operator.webhook.server import Webhook

SECONDS = 60.0
LIMIT_BYTES = 1024**3
"""Of the operator's pod in the chart."""
OPERATOR_BYTES = 300 * 2**20
"""What the operator itself takes of that; its peak with 8,000 pods was 266 MiB."""


@asynccontextmanager
async def serving(**more: Any) -> AsyncIterator[Webhook]:
    webhook = Webhook(
        WebhookStore(),  # type: ignore[arg-type]
        address="127.0.0.1",
        port=0,
        service="hooks",
        namespace="videotrain",
        secret_namespace="videotrain",
        secret="tls",
        configuration="videotrain",
        **more,
    )
    task = asyncio.create_task(webhook.run())
    async with asyncio.timeout(4 * SECONDS):
        while not webhook.ready:
            assert not task.done(), task
            await asyncio.sleep(0.02)
        yield webhook
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture
async def webhook(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Webhook]:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 1.0)
    async with serving() as webhook:
        yield webhook


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def stall(port: int, head: bytes, more: bytes = b"") -> None:
    """Begin a request and never end it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    writer.write(head + more)
    await writer.drain()


HEAD = b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HOSTILE: dict[str, bytes] = {
    "100,000 levels": b'{"a":' * 100_000,
    "levels that end": b"[" * 100_000 + b"]" * 100_000,
    "no JSON": b"NaN, what",
    "NaN": b'{"request": NaN}',
    "surrogate": b'{"request": {"uid": "\\ud800"}}',
    "no UTF-8": b"\xff\xfe{}",
    "nothing": b"",
    "a number of 5 MB": b"9" * 5_000_000,
    "100 MB": b" " * 100_000_000,
}


async def test_hostile_requests_end_nothing(webhook: Webhook) -> None:
    """Those who stall hold half of the seats while the rest comes in; honest reviews go through beside them."""
    url = f"https://127.0.0.1:{webhook.port}/validate"
    before = psutil.Process().memory_info().rss  # of this process, which has whatever other tests imported
    stalls = [HEAD + b"Content-Length: 1000\r\n\r\n{", HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", HEAD]
    await asyncio.gather(*(stall(webhook.port, head) for head in stalls for _ in range(3)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session:
        for name, hostile in HOSTILE.items():
            try:
                async with session.post(url, data=hostile) as response:
                    assert response.status in (400, 413, 503), (name, response.status)
            except aiohttp.ClientError:
                pass  # cut off while it was still talking
            async with session.post(url, data=review_body()) as response:
                assert response.status == 200, name
                assert (await response.json())["response"]["allowed"] is True
    processes = [psutil.Process(), *psutil.Process().children()]
    assert sum(process.memory_info().rss for process in processes) - before < LIMIT_BYTES - OPERATOR_BYTES


async def test_half_a_handshake_holds_up_nobody(webhook: Webhook) -> None:
    writers = [(await asyncio.open_connection("127.0.0.1", webhook.port))[1] for _ in range(50)]
    for writer in writers:
        writer.write(b"\x16\x03\x01" + struct.pack("!H", 512) + b"\x01")
    url = f"https://127.0.0.1:{webhook.port}/validate"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session,
        session.post(url, data=review_body()) as response,
    ):
        assert response.status == 200
    for writer in writers:
        writer.close()


async def test_a_flood_leaves_the_event_loop_its_turns(webhook: Webhook) -> None:
    """200 reviews at once, and passes of runs go on in between."""
    url, turns = f"https://127.0.0.1:{webhook.port}/validate", 0
    while await honest(webhook) != 200:  # on a busy machine a judge may begin later than its first review is given up
        pass

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(), limit=0)) as session:

        async def one() -> int:
            async with session.post(url, data=review_body()) as response:
                return response.status

        turning = asyncio.create_task(turn())
        statuses = await asyncio.gather(*(one() for _ in range(200)))
        turning.cancel()
    assert set(statuses) <= {200, 429, 503} and 200 in statuses
    assert turns > 2 * len(statuses), "no review was judged in the loop itself"


FLOOD, API = "127.0.0.2", "127.0.0.1"
"""Two addresses that call."""


async def honest(webhook: Webhook, context: ssl.SSLContext | None = None) -> int:
    """The status of the answer to an honest review from an address of its own."""
    connector = aiohttp.TCPConnector(ssl=context or trusting(), local_addr=(API, 0))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"https://127.0.0.1:{webhook.port}/validate", data=review_body()) as response,
    ):
        return response.status


async def connections(webhook: Webhook, count: int, *, tls: bool) -> list[asyncio.StreamReader]:
    async def one() -> asyncio.StreamReader:
        more: dict[str, Any] = {"ssl": trusting()} if tls else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", webhook.port, local_addr=(FLOOD, 0), **more)
        reader.writer = writer  # type: ignore[attr-defined]
        return reader

    opened = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    assert all(isinstance(reader, asyncio.StreamReader | OSError) for reader in opened), opened
    return [reader for reader in opened if isinstance(reader, asyncio.StreamReader)]


@pytest.mark.parametrize("tls", [True, False])
async def test_who_opens_more_connections_than_there_may_be_loses_its_own(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "serving", functools.partial(http_server.serving, most=8))
    async with serving() as webhook:
        connector = aiohttp.TCPConnector(ssl=trusting(), local_addr=(API, 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"https://127.0.0.1:{webhook.port}/validate"
            for _ in range(3):
                held = await connections(webhook, 12, tls=tls)
                async with session.post(url, data=review_body()) as response:
                    assert response.status == 200
            assert len(connector._conns) == 1, "the one connection of the API server was kept"
        assert webhook.refused()["crowded"] >= 3 * 12 - 8
        for reader in held:
            reader.writer.close()  # type: ignore[attr-defined]


async def test_a_handshake_that_stalls_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HANDSHAKE_SECONDS", 0.2)
    async with serving() as webhook:
        (reader,) = await connections(webhook, 1, tls=False)
        assert await reader.read() == b""
        assert webhook.refused()["handshake"] == 1


@pytest.mark.parametrize("sent", [b"", b"POST /validate HT", HEAD, HEAD + b"X: " + b"a" * 5000])
async def test_a_head_that_does_not_come_ends_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.3)
    async with serving() as webhook:
        (reader,) = await connections(webhook, 1, tls=True)
        reader.writer.write(sent)  # type: ignore[attr-defined]
        assert await reader.read() == b""


@pytest.mark.parametrize(
    "head", [b"X: " + b"a" * 65536, b"".join(b"X-%d: a\r\n" % i for i in range(1000)), b"X: a\r\n" * 100_000]
)
async def test_a_large_head_is_refused(head: bytes, webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """Which is counted, and no line of the log each time."""
    (reader,) = await connections(webhook, 1, tls=True)
    reader.writer.write(HEAD + head)  # type: ignore[attr-defined]
    assert b" 400 " in await reader.readline()
    assert webhook.refused()["malformed"] == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_fault_of_the_server_itself_is_logged(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "_seats", None)
    assert await honest(webhook) == 500
    assert "Traceback" in caplog.text and "NoneType" in caplog.text


async def test_slow_bodies_of_one_address_leave_places_to_others(webhook: Webhook) -> None:
    """And what is left of one that is refused is not read."""
    readers = await connections(webhook, 30, tls=True)
    for reader in readers:
        reader.writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")  # type: ignore[attr-defined]
    assert await honest(webhook) == 200
    assert (await readers[0].readline()).startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in (await readers[0].read()).lower()


async def test_a_body_that_is_too_large_is_refused_by_its_length_alone(webhook: Webhook) -> None:
    (reader,) = await connections(webhook, 1, tls=True)
    reader.writer.write(HEAD + b"Content-Length: 10000000\r\n\r\n")  # type: ignore[attr-defined]
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    assert webhook.refused()["large"] == 1


@pytest.mark.parametrize("coming", [b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{"])
async def test_a_body_that_breaks_off_is_no_fault_of_the_server(
    coming: bytes, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    (reader,) = await connections(webhook, 1, tls=True)
    reader.writer.write(HEAD + coming)  # type: ignore[attr-defined]
    await reader.writer.drain()  # type: ignore[attr-defined]
    while webhook._seats._free == server_module.MOST_AT_ONCE and not webhook.refused()["malformed"]:
        await asyncio.sleep(0.01)
    reader.writer.transport.abort()  # type: ignore[attr-defined]
    while webhook._seats._free < server_module.MOST_AT_ONCE:
        await asyncio.sleep(0.01)
    assert webhook.refused()["malformed"] == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_compressed_body_is_not_unpacked(webhook: Webhook) -> None:
    (reader,) = await connections(webhook, 1, tls=True)
    more = b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"
    reader.writer.write(HEAD + more)  # type: ignore[attr-defined]
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")


class TestClientCertificates:
    """An API server that is configured with one; see docs/how-to/install.md."""

    @staticmethod
    def bearer(folder: Path, authority: Any, key: Any) -> ssl.SSLContext:
        """What a caller with a certificate of an authority connects with."""
        own, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")]))
            .issuer_name(authority.subject)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        (folder / "client.pem").write_bytes(certificates_pem([certificate]) + key_pem(own))
        context = trusting()
        context.load_cert_chain(folder / "client.pem")
        return context

    async def test_only_callers_with_a_certificate_of_the_authority_are_heard(self, tmp_path: Path) -> None:
        authority, key = new_authority(datetime.now(UTC))
        (tmp_path / "ca.crt").write_bytes(certificates_pem([authority]))
        async with serving(client_ca=str(tmp_path / "ca.crt")) as webhook:
            assert await honest(webhook, self.bearer(tmp_path, authority, key)) == 200
            for stranger in (None, self.bearer(tmp_path, *new_authority(datetime.now(UTC)))):
                with pytest.raises(aiohttp.ClientError):
                    await honest(webhook, stranger)
            assert webhook.refused()["handshake"] == 2
            replaced, key = new_authority(datetime.now(UTC))
            (tmp_path / "ca.crt").write_bytes(certificates_pem([replaced]))
            assert await webhook.look()
            assert await honest(webhook, self.bearer(tmp_path, replaced, key)) == 200

    async def test_the_certificate_must_have_one_of_the_names(self, tmp_path: Path) -> None:
        authority, key = new_authority(datetime.now(UTC))
        (tmp_path / "ca.crt").write_bytes(certificates_pem([authority]))
        for name, status in (("kube-apiserver", 200), ("kubelet", 403)):
            async with serving(client_ca=str(tmp_path / "ca.crt"), client_names=frozenset({name})) as webhook:
                assert await honest(webhook, self.bearer(tmp_path, authority, key)) == status
                assert webhook.refused()["stranger"] == (status == 403)

    @pytest.mark.parametrize("content", [None, "", "no certificate"])
    async def test_without_an_authority_nobody_is_heard(
        self, content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        if content is not None:
            (tmp_path / "ca.crt").write_text(content)
        webhook = Webhook(
            WebhookStore(), port=0, service="a", namespace="a", secret_namespace="a", secret="tls",
            configuration="videotrain", client_ca=str(tmp_path / "ca.crt"),
        )  # type: ignore[arg-type]  # fmt: skip
        caplog.set_level(logging.WARNING)
        assert not await webhook.look()
        assert "--webhook-client-ca" in caplog.text
