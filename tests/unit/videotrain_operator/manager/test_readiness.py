"""A replica that hears nothing from the API server says so, and is ready again when it hears."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from support.small_api import SmallApi

from videotrain_api.vocabulary import BUDGET_KIND, BUDGET_PLURAL, KIND, PLURAL
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.kube.client import connect
from videotrain_operator.manager import app, budget_watch, kopf_thread
from videotrain_operator.manager.app import Operator
from videotrain_operator.manager.settings import Settings
from videotrain_operator.telemetry import OperatorMetrics

LONGEST = 60.0


class Replica:
    """An operator process in this one, asked over HTTP."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._url, self._session = f"http://127.0.0.1:{port}", session

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self._url + path) as answer:
            return answer.status, await answer.text()

    async def told(self, path: str, expected: Callable[[int, str], bool]) -> str:
        """What it answers as soon as that is as expected."""
        answer: tuple[int, str] | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST):
                while answer is None or not expected(*answer):
                    await asyncio.sleep(0.02)
                    answer = await self.get(path)
                return answer[1]
        raise AssertionError(f"{path} goes on answering {answer}")

    async def ready(self) -> None:
        await self.told("/readyz", lambda status, _: status == 200)

    async def unready(self, *watches: str) -> str:
        """It is not ready, for the silence of exactly these watches."""
        return await self.told("/readyz", lambda status, text: status == 503 and set(named(text)) == set(watches))


def named(text: str) -> list[str]:
    found = re.search(r"of (.*) from the API server", text)
    return found[1].split(", ") if found else []


@pytest_asyncio.fixture
async def api() -> AsyncIterator[SmallApi]:
    async with SmallApi() as api:
        yield api


@pytest_asyncio.fixture
async def replica(
    api: SmallApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Replica]:
    monkeypatch.setattr(app, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(kopf_thread, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(budget_watch, "REFUSED_SECONDS", 0.02)
    caplog.set_level(logging.INFO)
    config = str(api.kubeconfig(tmp_path))
    settings = Settings(kubeconfig=config, leader_elect=False, http_port=0, lease_namespace="default")
    async with connect(config) as client, AgentClient() as agents, aiohttp.ClientSession() as session:
        operator = Operator(settings, client, agents, OperatorMetrics())
        task = asyncio.create_task(operator.run())
        while not (port := re.search(r"/readyz on port (\d+)", caplog.text)):
            assert not task.done(), task
            await asyncio.sleep(0.02)
        replica = Replica(int(port[1]), session)
        yield replica
        operator.stop()
        await task


async def test_silence_of_one_watch_is_named_and_ends_with_the_silence(api: SmallApi, replica: Replica) -> None:
    await replica.ready()
    api.silent.add("configmaps")
    await replica.unready("ConfigMap")
    assert (await replica.get("/healthz"))[0] == 200, "a restart would not make the API server speak"
    api.silent.clear()
    await replica.ready()


async def test_silence_about_the_runs_is_noticed_although_kopf_tells_of_no_bookmark(
    api: SmallApi, replica: Replica
) -> None:
    await replica.ready()
    api.silent.add(PLURAL)
    await replica.unready(KIND)
    api.silent.clear()
    await replica.ready()


async def test_a_server_that_says_nothing_at_all_is_noticed_by_every_watch(api: SmallApi, replica: Replica) -> None:
    await replica.ready()
    api.silent |= {"pods", "configmaps", "nodes", PLURAL, BUDGET_PLURAL}
    await replica.unready("Node", "Pod", "ConfigMap", KIND, BUDGET_KIND)


async def test_bookmarks_alone_keep_it_ready_and_the_metric_tells_how_long_ago_each_was(
    api: SmallApi, replica: Replica
) -> None:
    await replica.ready()
    api.silent.add("nodes")
    await replica.unready("Node")
    _, text = await replica.get("/metrics")
    ages = dict(re.findall(r'videotrain_watch_silent_seconds{kind="(\w+)"} ([\d.]+)', text))
    assert set(ages) == {"Node", "Pod", "ConfigMap", KIND, BUDGET_KIND}
    assert float(ages["Node"]) > 1.0 > float(ages["Pod"]), "no object of either kind exists"


def waits(caplog: pytest.LogCaptureFixture) -> int:
    """How often it said so since it was started, which a fixture does."""
    said = [record.getMessage() for phase in ("setup", "call") for record in caplog.get_records(phase)]
    return sum(f"waiting for the API server to tell of {BUDGET_KIND}" in message for message in said)


@pytest_asyncio.fixture
async def refused_budgets(api: SmallApi) -> None:
    api.refused[BUDGET_PLURAL] = 503


async def test_a_server_that_cannot_tell_of_budgets_when_it_starts_is_asked_again(
    api: SmallApi, refused_budgets: None, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(LONGEST):
        while not waits(caplog):
            await asyncio.sleep(0.02)
    api.refused.clear()
    await replica.ready()
    assert BUDGET_KIND in (await replica.get("/metrics"))[1], "budgets are watched all the same"


def counted(text: str) -> bool:
    return re.search(r'videotrain_watch_silent_seconds{kind="TrainingBudget"}', text) is not None


@pytest.fixture(params=[(404, "NotFound"), (403, "ApiError")], ids=["not served", "forbidden"])
def refusal(request: pytest.FixtureRequest) -> tuple[int, str]:
    status, name = request.param
    return int(status), str(name)


@pytest_asyncio.fixture
async def without_budgets(api: SmallApi, refusal: tuple[int, str]) -> None:
    api.refused[BUDGET_PLURAL] = refusal[0]


async def test_budgets_that_nobody_may_read_at_the_start_are_read_when_they_can_be(
    api: SmallApi, refusal: tuple[int, str], without_budgets: None, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    await replica.ready()
    error = f'videotrain_reconcile_errors_total{{error="{refusal[1]}"}}'
    assert not counted(await replica.told("/metrics", lambda _, text: error in text))
    api.refused.clear()
    await replica.told("/metrics", lambda _, text: counted(text))
    assert waits(caplog) == 1


async def test_a_definition_of_budgets_that_goes_ends_nothing(api: SmallApi, replica: Replica) -> None:
    await replica.ready()
    api.refused[BUDGET_PLURAL] = 404
    await replica.told("/metrics", lambda _, text: not counted(text))
    await replica.ready()
    api.refused.clear()
    await replica.told("/metrics", lambda _, text: counted(text))
