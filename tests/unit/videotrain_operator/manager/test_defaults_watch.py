"""The defaults for runs as their ConfigMap changes: what cannot be read is told once, and changes nothing."""

from __future__ import annotations

import json

import pytest

from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiUnavailable
from videotrain_operator.manager import defaults_watch as module
from videotrain_operator.manager.defaults_watch import DefaultsWatch


class ConfigMaps:
    """A client of an API server with one ConfigMap, or none, which may be away."""

    def __init__(self, *texts: str | None) -> None:
        self.away, self.version, self.text, self.later = False, 1, texts[0] if texts else None, list(texts[1:])

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        assert (kind, namespace, name) == ("ConfigMap", "ops", "defaults")
        if self.away:
            raise ApiUnavailable(503, "ServiceUnavailable", "it starts")
        text, version = self.text, self.version
        if self.later:
            self.write(self.later.pop(0))
        if text is None:
            raise NotFound("no such ConfigMap")
        return {"metadata": {"name": name, "resourceVersion": str(version)}, "data": {"defaults.json": text}}

    def write(self, text: str | None) -> None:
        self.text, self.version = text, self.version + 1


class Watched:
    """A watch, and what it told."""

    def __init__(self, client: ConfigMaps) -> None:
        self.taken: list[RunDefaults] = []
        self.refused: list[tuple[str, str]] = []

        async def unreadable(config_map: Json, problem: str) -> None:
            self.refused.append((config_map["metadata"]["resourceVersion"], problem))

        self.watch = DefaultsWatch(client, "ops", "defaults", self.taken.append, unreadable)  # type: ignore[arg-type]


def text_of(image: str) -> str:
    return json.dumps({"image": image})


async def test_the_last_readable_defaults_stay() -> None:
    client = ConfigMaps(text_of("a:1"))
    watched = Watched(client)
    await watched.watch.first()
    assert [each.image for each in watched.taken] == ["a:1"]
    for wrong in ("{", '{"imag": "b:1"}', "[]", '{"enforced": ["env"]}', "[" * 100_000, None):
        client.write(wrong)
        assert await watched.watch.look()
        assert watched.watch.problem
        assert await watched.watch.look(), "one version is told of once"
    assert watched.watch.unreadable == 6
    assert [version for version, _ in watched.refused] == ["2", "3", "4", "5", "6"], "no ConfigMap, no event about it"
    assert "did you mean 'image'" in watched.refused[1][1]
    client.away = True
    assert not await watched.watch.look()
    client.away = False
    client.write(text_of("a:1"))
    await watched.watch.look()
    assert (watched.watch.problem, len(watched.taken)) == ("", 1), "they are what they were"
    client.write(text_of("c:1"))
    await watched.watch.look()
    assert [each.image for each in watched.taken] == ["a:1", "c:1"]


async def test_nothing_begins_before_there_are_readable_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    client = ConfigMaps(None, "{", "{}")
    watched = Watched(client)
    await watched.watch.first()
    assert (watched.watch.unreadable, watched.watch.problem, watched.taken) == (2, "", [])
