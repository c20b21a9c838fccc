"""Which master key a replica works with."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from videotrain_api.schema import Json
from videotrain_api.signing import KEY_BYTES
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.manager import master_key as module
from videotrain_operator.manager.app import Operator
from videotrain_operator.manager.master_key import MasterKeyError, read_master_key


class Secrets:
    """A client of an API server with one Secret, or none; `rival` writes it just before we would."""

    def __init__(self, secret: Json | None = None, rival: Json | None = None) -> None:
        self.secret, self.rival, self.writes = secret, rival, 0

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        assert (kind, namespace, name) == ("Secret", "ops", "keys")
        if self.secret is None:
            raise NotFound("no such secret")
        return self.secret

    async def create(self, body: Json, *_: Any) -> None:
        await self.replace(body)

    async def replace(self, body: Json, **_: Any) -> None:
        if self.rival is not None:
            self.secret, self.rival = self.rival, None
            raise Conflict("another was first")
        self.secret, self.writes = body, self.writes + 1


def secret_of(key: bytes) -> Json:
    return {"metadata": {"name": "keys"}, "data": {"key": base64.b64encode(key).decode()}}


async def read(client: Secrets) -> bytes:
    return await read_master_key(client, "ops", "keys")  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", [None, {"metadata": {"name": "keys"}}], ids=["no secret", "no data"])
async def test_a_key_is_made_once_and_kept(secret: Json | None) -> None:
    client = Secrets(secret)
    key = await read(client)
    assert len(key) == KEY_BYTES
    assert await read(client) == key
    assert client.writes == 1


async def test_of_two_replicas_the_first_one_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    client = Secrets(rival=secret_of(b"r" * KEY_BYTES))
    assert await read(client) == b"r" * KEY_BYTES
    assert client.writes == 0


async def test_a_key_that_is_too_short_is_not_replaced_and_says_what_would_happen() -> None:
    client = Secrets(secret_of(b"short"))
    with pytest.raises(MasterKeyError, match=r"Secret ops/keys.*5 bytes.*pods of all runs are then made anew"):
        await read(client)
    assert client.writes == 0


async def test_each_term_of_a_leader_begins_with_the_key_of_now() -> None:
    client, used = Secrets(secret_of(b"a" * KEY_BYTES)), []
    operator = object.__new__(Operator)
    operator._client, operator._namespace = client, "ops"  # type: ignore[assignment]
    operator._settings = SimpleNamespace(key_secret="keys")  # type: ignore[assignment]
    operator._agents = agents = SimpleNamespace(master_key=b"")  # type: ignore[assignment]

    async def lead() -> None:
        used.append(agents.master_key)

    operator._controller = SimpleNamespace(lead=lead)  # type: ignore[assignment]
    await operator._lead()
    client.secret = secret_of(b"b" * KEY_BYTES)
    await operator._lead()
    assert used == [b"a" * KEY_BYTES, b"b" * KEY_BYTES]
