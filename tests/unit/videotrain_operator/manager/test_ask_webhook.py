"""What `helm test` asks: a run that only the webhook refuses, and who refused it."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.offline_admission import OfflineAdmission

from videotrain_operator.kube.client import ApiError
from videotrain_operator.manager import ask_webhook as module
from videotrain_operator.manager.ask_webhook import WRONG, WebhookSilent, ask_webhook

DENIED = 'admission webhook "validate.videotrain.dev" denied the request: spec.podTemplate.spec.hostname'


class Server:
    """A client of an API server that gives one answer after another: why it refuses, or nothing."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def raw(self, method: str, path: str, body: Any, query: dict[str, str]) -> None:
        assert (method, path) == ("POST", "/apis/videotrain.dev/v1alpha1/namespaces/team/videotrainingruns")
        assert query == {"dryRun": "All"}, "it is stored in no case"
        assert body == WRONG
        if answer := self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]:
            raise ApiError(422, "Invalid", answer)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)


def serve(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    server = Server(*answers)

    @asynccontextmanager
    async def connect() -> Any:
        yield server

    monkeypatch.setattr(module, "connect", connect)


def test_the_rules_of_the_crd_take_the_wrong_run() -> None:
    assert OfflineAdmission().serve(copy.deepcopy(WRONG))[1] == []


async def test_it_waits_until_the_webhook_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "", "no endpoints available", DENIED)
    assert DENIED in await ask_webhook("team")


UNREACHABLE = 'failed calling webhook "validate.videotrain.dev": connection refused'


@pytest.mark.parametrize(
    ("answer", "told"),
    [("", "would have taken it"), ("the CRD refuses", "the CRD refuses"), (UNREACHABLE, "connection refused")],
)
async def test_a_webhook_that_nobody_asks_is_told(monkeypatch: pytest.MonkeyPatch, answer: str, told: str) -> None:
    serve(monkeypatch, answer)
    with pytest.raises(WebhookSilent, match=told):
        await ask_webhook("team")
