from hypothesis import given
from hypothesis import strategies as st

from videotrain_operator.kube.cache import ANSWER_SECONDS, Key, Store, key_of


def pod(name="tiny-w0", uid="u1", version=1, run="r1", node=None, namespace="default", created="2026-01-01T00:00:00Z"):
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    metadata |= {"labels": {"videotrain.dev/run-uid": run}, "creationTimestamp": created}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": node} if node else {}}


def test_an_older_version_never_replaces_a_newer_one():
    store = Store()
    assert store.put(pod(version=7, node="a"))
    assert not store.put(pod(version=6))
    assert not store.put(pod(version=7))
    assert store.on_node("a") == [pod(version=7, node="a")]


def test_versions_are_compared_as_numbers():
    store = Store()
    store.put(pod(version=99))
    assert store.put(pod(version=100))


def test_indices_follow_changes_and_removals():
    store = Store()
    store.put(pod(version=1, node="a"))
    store.put(pod(version=2, node="b"))
    assert store.on_node("a") == []
    assert [key_of(body).name for body in store.on_node("b")] == ["tiny-w0"]
    assert store.remove(pod(version=2)) is not None
    assert store.on_node("b") == [] == store.of_run("r1")


def test_what_we_removed_does_not_come_back_through_a_late_event():
    store = Store()
    store.put(pod(version=1))
    store.remove(pod(version=1), ours=True)
    assert not store.put(pod(version=2)), "an event from before the deletion"
    assert store.remove(pod(version=3)) is None, "the watch confirms the deletion"
    assert store.put(pod(uid="u2", version=4)), "the name is free again"


def test_what_the_watch_told_the_end_of_does_not_come_back_through_a_late_answer():
    """That to a delete tells of a pod that is being deleted, that to a create of a new one."""
    store = Store()
    store.put(pod(version=1))
    store.remove(pod(version=5))
    assert not store.put(pod(version=3)), "the answer comes after the watch"
    assert store.get(Key("default", "tiny-w0")) is None
    store.keep_only([], version=9)
    assert not store.put(pod(version=3))
    store.remove(pod(version=4), ours=True)
    assert not store._removed, "no watch will ever confirm it"
    assert store.put(pod(uid="u2", version=10)), "the name is free again"


def test_what_a_list_did_not_hold_does_not_come_back_through_a_late_answer():
    store = Store()
    store.put(pod(version=2))
    store.keep_only([], version=10)
    assert not store.put(pod(version=9))


def test_an_object_that_carries_our_labels_again_is_taken_again():
    """A watch by labels tells of its end when they are taken away."""
    store = Store()
    store.put(pod(version=1))
    store.remove(pod(version=5))
    assert store.put(pod(version=6))


def test_ends_are_forgotten_when_no_answer_can_come_any_more():
    now = [0.0]
    store = Store(lambda: now[0])
    for number in range(1000):
        now[0] += 1.0
        store.remove(pod(uid=f"u{number}", version=number + 1))
    assert len(store._gone) <= ANSWER_SECONDS + 1
    assert not store.put(pod(uid="u999", version=1))


def test_the_answer_to_a_creation_that_comes_after_a_list_without_the_pod_is_old():
    """The watch broke meanwhile, so nobody told of the pod at all."""
    store = Store()
    store.keep_only([], version=10, namespace="default")
    assert not store.put(pod(version=9))
    assert store.put(pod("elsewhere", "u2", version=9, namespace="other"))
    assert store.put(pod(version=11))
    store.begin_list("default")
    assert store.put(pod("listed", "u3", version=5)), "a list from before, of a server that was restored"


class Server:
    """Tells by a watch, in order, and by answers, whenever they come, what was done to its pods."""

    def __init__(self, store):
        self.store, self.version, self.pods, self.events, self.answers = store, 0, {}, [], []

    def changed(self, name, uid="", deleted=False):
        self.version += 1
        body = pod(name, uid or self.pods[name]["metadata"]["uid"], self.version)
        self.events.append((deleted, body))
        if deleted:
            del self.pods[name]
        else:
            self.pods[name] = body
        return body

    def create(self, name):
        if name not in self.pods:
            self.answers.append((self.store.put, self.changed(name, f"u{self.version}")))

    def delete(self, name):
        """It goes later."""
        if name in self.pods:
            self.answers.append((self.store.put, self.changed(name)))

    def force(self, name):
        if name in self.pods:
            body = self.changed(name, deleted=True)
            self.answers.append((lambda body: self.store.remove(body, ours=True), body))

    def end(self, name):
        if name in self.pods:
            self.changed(name, deleted=True)

    def tell(self, name):
        """The watch goes on by one event."""
        if self.events:
            deleted, body = self.events.pop(0)
            (self.store.remove if deleted else self.store.put)(body)

    def answer(self, name):
        """One of the answers comes, not always that which was asked for first."""
        if self.answers:
            take, body = self.answers.pop(len(name) * self.version % len(self.answers))
            take(body)

    def list(self, name):
        """The watch broke and begins anew."""
        self.events.clear()
        self.store.begin_list()
        for body in self.pods.values():
            self.store.put(body)
        self.store.keep_only([key_of(body) for body in self.pods.values()], self.version)


STEPS = ("create", "delete", "force", "end", "tell", "tell", "answer", "list")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(["a", "bb", "ccc"])), max_size=60))
def test_in_whatever_order_watch_and_answers_come_in_the_end_the_cache_is_what_there_is(steps):
    server = Server(Store())
    for what, name in steps:
        getattr(server, what)(name)
    while server.events or server.answers:
        server.tell("")
        server.answer("a")
    assert {key.name: server.store.get(key) for key in server.store.names()} == server.pods


def test_removing_one_pod_leaves_its_successor_of_the_same_name():
    store = Store()
    store.put(pod(uid="u2", version=9))
    assert store.remove(pod(uid="u1", version=8)) is None
    assert store.get(Key("default", "tiny-w0")) is not None


def test_a_list_removes_what_it_does_not_hold_but_nothing_younger_and_nothing_elsewhere():
    store = Store()
    store.put(pod("old", "u1", version=3))
    store.put(pod("young", "u2", version=20))
    store.put(pod("kept", "u3", version=4))
    store.put(pod("elsewhere", "u4", version=2, namespace="other"))
    gone = store.keep_only([Key("default", "kept")], version=10, namespace="default")
    assert [key_of(body).name for body in gone] == ["old"]
    assert {key.name for key in store.names()} == {"young", "kept", "elsewhere"}


def test_objects_of_a_run_come_oldest_first():
    store = Store()
    store.put(pod("b", "u1", created="2026-01-01T00:00:02Z"))
    store.put(pod("a", "u2", created="2026-01-01T00:00:01Z"))
    assert [key_of(body).name for body in store.of_run("r1")] == ["a", "b"]


@given(st.lists(st.tuples(st.sampled_from(["put", "gone", "ours"]), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_the_indices_always_hold_exactly_the_stored_objects(steps):
    store = Store()
    for version, (what, name, node) in enumerate(steps, start=1):
        body = pod(f"w{name}", f"u{name}-{version if what == 'put' else 0}", version, node=f"n{node}")
        known = store.get(key_of(body))
        if what == "put":
            store.put(body)
        elif known is not None:
            store.remove(known, ours=what == "ours")
    by_node = [key_of(body) for node in range(3) for body in store.on_node(f"n{node}")]
    assert sorted(by_node) == sorted(store.names()) == sorted(key_of(body) for body in store.of_run("r1"))
