"""The object store against a model that keeps plain dictionaries."""

import asyncio
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from videotrain.embedded.store import EmbeddedCluster
from videotrain_operator.cluster.interface import Conflict

NAMES = st.sampled_from(["a", "b", "c"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"]), max_size=2)
DATA = st.dictionaries(st.sampled_from(["k", "l", "m"]), st.text(max_size=3), max_size=3)


def run(coroutine):
    return asyncio.run(coroutine)


class StoreMachine(RuleBasedStateMachine):
    """ConfigMaps and runs by apply, status writes, deletion, reopening of the database."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "cluster.db"
        self.cluster = EmbeddedCluster(self.path)
        self.model = {}
        self.version = 0
        self.events = []
        self.watch = self.cluster.watch("ConfigMap", "default")

    def teardown(self):
        self.cluster.close()
        self.folder.cleanup()

    seen = Bundle("seen")

    def fresh_version(self, body):
        version = int(body["metadata"]["resourceVersion"])
        assert version > self.version
        self.version = version

    @rule(target=seen, name=NAMES, labels=LABELS, data=DATA)
    def apply(self, name, labels, data):
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data}
        before = self.model.get(name)
        body = run(self.cluster.apply(manifest))
        assert body["data"] == data
        # One manager that always writes labels: they are exactly what it wrote last.
        assert body["metadata"]["labels"] == labels
        if before and (before["data"], before["metadata"]["labels"]) == (data, labels):
            assert body == before
        else:
            self.fresh_version(body)
            self.events.append(("MODIFIED" if before else "ADDED", body))
        if before:
            assert body["metadata"]["uid"] == before["metadata"]["uid"]
            assert body["metadata"]["creationTimestamp"] == before["metadata"]["creationTimestamp"]
        self.model[name] = body
        return body

    @rule(old=seen, data=DATA)
    def apply_with_precondition(self, old, data):
        name = old["metadata"]["name"]
        metadata = {"name": name, "resourceVersion": old["metadata"]["resourceVersion"], "labels": {}}
        current = self.model.get(name)
        fits = current and current["metadata"]["resourceVersion"] == metadata["resourceVersion"]
        try:
            body = run(
                self.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
            )
        except Conflict:
            assert not fits
            return
        assert fits
        if body != current:
            self.fresh_version(body)
            self.events.append(("MODIFIED", body))
        self.model[name] = body

    @rule(old=consumes(seen))
    def delete_with_uid(self, old):
        name, uid = old["metadata"]["name"], old["metadata"]["uid"]
        current = self.model.get(name)
        try:
            run(self.cluster.delete("ConfigMap", "default", name, uid=uid))
        except Conflict:
            assert current["metadata"]["uid"] != uid
            return
        if current is not None:
            assert current["metadata"]["uid"] == uid
            del self.model[name]
            self.events += [("MODIFIED", None), ("DELETED", None)]
            self.version += 2

    @rule()
    def reopen(self):
        self.drain_watch()
        self.cluster.close()
        self.cluster = EmbeddedCluster(self.path)
        self.watch = self.cluster.watch("ConfigMap", "default")

    @rule(labels=LABELS)
    def select(self, labels):
        found = run(self.cluster.list("ConfigMap", "default", labels))
        expected = [b for b in self.model.values() if labels.items() <= b["metadata"]["labels"].items()]
        assert sorted(b["metadata"]["name"] for b in found) == sorted(b["metadata"]["name"] for b in expected)

    @precondition(lambda self: self.events)
    @rule()
    def drain_watch(self):
        async def take():
            return [await anext(self.watch) for _ in self.events]

        for (type_, body), event in zip(self.events, run(take()), strict=True):
            assert event.type == type_
            assert body is None or event.object == body
        self.events = []

    @invariant()
    def objects_are_those_of_the_model_in_order_of_age(self):
        found = run(self.cluster.list("ConfigMap", "default"))
        assert {b["metadata"]["name"]: b for b in found} == self.model
        created = [b["metadata"]["creationTimestamp"] for b in found]
        assert created == sorted(created)


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=30, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)
