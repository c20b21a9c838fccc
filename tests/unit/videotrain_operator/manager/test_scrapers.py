"""Who may read /metrics: decisions from the two reviews, how long they last, and how few are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from videotrain_operator.kube.client import ApiUnavailable
from videotrain_operator.manager import scrapers as module
from videotrain_operator.manager.scrapers import KEPT, MOST_ASKED, Scrapers
from videotrain_operator.manager.server import serve

USERS = {"reader": "prometheus", "stranger": "somebody"}


class Reviews:
    """An API server that answers both reviews; tests/cluster/test_metrics_access.py asks a real one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = False
        self.hold: asyncio.Event | None = None

    async def create(self, manifest: dict[str, Any], manager: str) -> dict[str, Any]:
        self.asked.append(manifest["kind"])
        assert manifest["metadata"] == {}, "no namespace, no name"
        if self.hold is not None:
            await self.hold.wait()
        if self.away:
            raise ApiUnavailable(0, "ConnectionLost", "away")
        spec = manifest["spec"]
        if manifest["kind"] == "TokenReview":
            user = USERS.get(spec["token"])
            known = {"user": {"username": user, "uid": "u", "groups": ["g"], "extra": {"k": ["v"]}}}
            return manifest | {"status": {"authenticated": True, **known} if user else {"error": "no"}}
        assert (spec["uid"], spec["groups"], spec["extra"]) == ("u", ["g"], {"k": ["v"]})
        assert spec["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}
        return manifest | {"status": {"allowed": spec["user"] == "prometheus"}}


class Door:
    def __init__(self) -> None:
        self.reviews, self.seconds = Reviews(), 1000.0
        self.scrapers = Scrapers(self.reviews, lambda: self.seconds)  # type: ignore[arg-type]

    async def ask(self, authorization: str) -> int:
        return await self.scrapers.judge(authorization)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer reader", 200), ("bearer  reader ", 200), ("Bearer stranger", 403), ("Bearer made-up", 401)],
)
async def test_the_reviews_decide(door: Door, authorization: str, status: int) -> None:
    assert await door.ask(authorization) == status


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic cmVhZGVy", "reader"])
async def test_nobody_is_asked_about_what_is_no_bearer_token(door: Door, authorization: str) -> None:
    assert await door.ask(authorization) == 401
    assert door.reviews.asked == []


@pytest.mark.parametrize(
    ("token", "status", "seconds"), [("reader", 200, module.ALLOWED_SECONDS), ("stranger", 403, module.DENIED_SECONDS)]
)
async def test_an_answer_is_remembered_for_a_short_time(door: Door, token: str, status: int, seconds: float) -> None:
    for _ in range(3):
        assert await door.ask(f"Bearer {token}") == status
    assert door.reviews.asked == ["TokenReview", "SubjectAccessReview"]
    door.seconds += seconds
    assert await door.ask(f"Bearer {token}") == status
    assert len(door.reviews.asked) == 4


async def test_a_right_that_was_taken_away_ends_with_the_minute(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await door.ask("Bearer reader") == 200
    monkeypatch.delitem(USERS, "reader")
    door.seconds += module.ALLOWED_SECONDS
    assert await door.ask("Bearer reader") == 401


async def test_while_the_api_server_is_away_known_readers_see_it_and_others_wait(door: Door) -> None:
    assert await door.ask("Bearer reader") == 200
    assert await door.ask("Bearer stranger") == 403
    door.reviews.away = True
    door.seconds += module.ALLOWED_SECONDS
    assert await door.ask("Bearer reader") == 200
    assert await door.ask("Bearer stranger") == 503
    assert await door.ask("Bearer new") == 503
    door.seconds += module.AWAY_SECONDS
    assert await door.ask("Bearer reader") == 503


async def test_made_up_tokens_crowd_out_no_reader_and_no_memory(door: Door) -> None:
    assert await door.ask("Bearer reader") == 200
    for number in range(2 * KEPT):
        await door.ask(f"Bearer made-up-{number}")
    asked = len(door.reviews.asked)
    assert await door.ask("Bearer reader") == 200
    assert len(door.reviews.asked) == asked
    assert len(door.scrapers._verdicts) <= KEPT


async def test_a_flood_asks_few_at_a_time(door: Door) -> None:
    door.reviews.hold = asyncio.Event()
    tasks = [asyncio.create_task(door.ask(f"Bearer {number}")) for number in range(100)]
    done, waiting = await asyncio.wait(tasks, timeout=0.2)
    assert len(waiting) == len(door.reviews.asked) == MOST_ASKED
    assert {task.result() for task in done} == {503}
    door.reviews.hold.set()
    assert {await task for task in waiting} == {401}


@pytest_asyncio.fixture
async def url(door: Door) -> AsyncIterator[str]:
    def well() -> str:
        return ""

    async with serve(
        "127.0.0.1", 0, metrics=lambda: b"one 1\n", healthy=well, ready=well, scrapers=door.scrapers
    ) as port:
        yield f"http://127.0.0.1:{port}"


async def test_only_metrics_are_behind_the_door(url: str) -> None:
    async with aiohttp.ClientSession() as session:

        async def get(path: str, token: str = "") -> tuple[int, str, str | None]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.get(url + path, headers=headers) as answer:
                return answer.status, await answer.text(), answer.headers.get("WWW-Authenticate")

        assert await get("/metrics") == (401, "Unauthorized\n", "Bearer")
        assert await get("/metrics", "stranger") == (403, "Forbidden\n", None)
        assert await get("/metrics", "reader") == (200, "one 1\n", None)
        assert (await get("/healthz"))[0] == (await get("/readyz"))[0] == 200
