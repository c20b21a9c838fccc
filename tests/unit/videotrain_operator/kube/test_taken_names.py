"""A name that a run needs is taken: by itself, by a run before it, or by a stranger."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_builders import manifest, run_of

from videotrain_api.render.roster import render_roster
from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_RUN_UID
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.cached_cluster import CACHED, KubeCluster, NameTakenError

RUN = run_of(manifest())
UID = RUN.metadata.uid or ""
WANTED = render_roster(RUN, None, None)


class Server:
    """Has one config map; refuses to make another of its name."""

    def __init__(self, body: Json) -> None:
        self.body, self.patches = body, []

    def fenced(self, fence: Any) -> Server:
        return self

    async def create(self, manifest: Json, manager: str, *, patience: float) -> Json:
        raise Conflict("exists")

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        return self.body

    async def patch(self, kind: str, namespace: str, name: str, patch: Json, *, manager: str) -> Json:
        self.patches.append(patch)
        self.body = self.body | {"metadata": self.body["metadata"] | patch["metadata"] | {"resourceVersion": "8"}}
        return self.body

    async def apply(self, manifest: Json, manager: str) -> Json:
        self.patches.append(manifest)
        return self.body


def there(labels: dict[str, str], owner: str = "", **head: Any) -> Server:
    owners = [{"uid": owner, "name": "demo", "kind": "VideoTrainingRun"}] if owner else []
    metadata = {"name": "demo-roster", "namespace": "default", "uid": "u", "resourceVersion": "7", "labels": labels}
    metadata |= head | {"ownerReferences": owners}
    return Server({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"precious": "1"}})


async def tried(server: Server) -> tuple[type[Exception], Store]:
    stores = {kind: Store() for kind in CACHED}
    cluster = KubeCluster(server, stores, lambda: None, "host")  # type: ignore[arg-type]
    with pytest.raises((Conflict, NameTakenError)) as caught:
        await cluster.apply(WANTED)
    return caught.type, stores["ConfigMap"]


LABELS = WANTED["metadata"]["labels"]
FORMER = LABELS | {LABEL_RUN_UID: "former"}


@pytest.mark.parametrize(
    "server",
    [there({}), there({"app": "mine"}, owner="a-deployment"), there(FORMER)],
    ids=["plain", "of another owner", "left by a run that owns it no more"],
)
async def test_what_nobody_would_take_away_is_told_and_left_alone(server: Server) -> None:
    before = dict(server.body)
    raised, store = await tried(server)
    assert raised is NameTakenError
    assert (server.body, server.patches) == (before, [])
    assert not store.all()


@pytest.mark.parametrize(
    "server",
    [there(FORMER, owner="former"), there({}, deletionTimestamp="2026-01-01T00:00:00Z")],
    ids=["of a run before", "going"],
)
async def test_what_goes_by_itself_is_waited_for(server: Server) -> None:
    raised, store = await tried(server)
    assert raised is Conflict
    assert server.patches == []
    assert not store.all()


async def test_an_own_object_that_the_cache_does_not_know_is_learnt() -> None:
    server = there(LABELS, owner=UID)
    raised, store = await tried(server)
    assert raised is Conflict
    assert server.patches == []
    assert store.get(Key("default", "demo-roster"))


@pytest.mark.parametrize("labels", [{}, FORMER, {"app.kubernetes.io/managed-by": "me"}])
async def test_an_own_object_whose_labels_were_changed_gets_them_back(labels: dict[str, str]) -> None:
    server = there(labels, owner=UID)
    raised, store = await tried(server)
    assert raised is Conflict
    assert server.patches == [{"metadata": {"uid": "u", "resourceVersion": "7", "labels": LABELS}}]
    assert store.get(Key("default", "demo-roster"))


async def test_what_is_there_is_changed_only_while_it_is_the_object_that_was_seen() -> None:
    server = there(LABELS, owner=UID)
    stores = {kind: Store() for kind in CACHED}
    stores["ConfigMap"].put(server.body)
    cluster = KubeCluster(server, stores, lambda: None, "host")  # type: ignore[arg-type]
    await cluster.apply(WANTED)
    assert [patch["metadata"]["uid"] for patch in server.patches] == ["u"]


async def test_what_was_seen_and_is_gone_is_not_made_again_unseen() -> None:
    server = there(LABELS, owner=UID)
    server.create = None  # type: ignore[assignment]  # nothing is asked of the server, which would refuse it
    cluster = KubeCluster(server, {kind: Store() for kind in CACHED}, lambda: None, "host")  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="is gone"):
        await cluster.apply(render_roster(RUN, None, "7"))
