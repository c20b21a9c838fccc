"""The end of a failed generation lies in the run's storage: real agents and worlds, a real S3 server."""

import gzip

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prometheus_client.parser import text_string_to_metric_families
from support.agent_pods import Worlds, stage_config

from videotrain_api.records import Roster
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage.layout import failure_log, failures_prefix
from videotrain_trainer.agent import failure_logs
from videotrain_trainer.agent.failure_logs import FailureLogs

BUCKET = "failures"


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHETEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for key in keys(client):
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)


def keys(client):
    return sorted(each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()))


def text_of(client, key):
    return gzip.decompress(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()).decode()


def config_at(endpoint, uri=f"s3://{BUCKET}/runs"):
    storage = Storage(uri=uri, endpoint_url=endpoint, region="us-east-1")
    return stage_config().model_copy(update={"storage": storage})


@pytest.fixture
def worlds(tmp_path, s3):
    started = Worlds(tmp_path)
    yield started
    started.close()


def key_of(generation, pod):
    uri = failure_log(f"s3://{BUCKET}/runs", "tiny", "run", generation, pod.name)
    return uri.removeprefix(f"s3://{BUCKET}/")


def leave(worlds, config):
    """Agents end when they are told that the run is over; what they store is stored by then."""
    worlds.start(action="leave", config=config)
    for pod in worlds.pods:
        pod.process.wait(60)


def test_a_worker_that_fails_leaves_log_and_reason_and_pods_that_lost_a_peer_leave_nothing(worlds, endpoint, s3):
    first, second = worlds.pods
    config = config_at(endpoint)
    generation = worlds.start(first, second, config=config)
    second.until_step(generation, 2)
    second.behave("bug", 1)
    for pod in worlds.pods:
        pod.until_ended(generation)
    leave(worlds, config)
    assert keys(s3) == [key_of(generation, first), key_of(generation, second)], "the leader's, and that of the fault"
    text = text_of(s3, key_of(generation, second))
    assert "==== rank 3: failed, code" in text and "ValueError: an application error" in text
    assert "==== rank 2:" in text
    assert "an application error" in second.log.read_text(), "the pod's log has it, too"
    assert "secret-of-the-test" not in text


def test_a_crash_in_native_code_says_where(worlds, endpoint, s3):
    first, second = worlds.pods
    config = config_at(endpoint)
    generation = worlds.start(second, first, config=config)
    first.until_step(generation, 2)
    first.behave("segmentation fault", 0)
    first.until_ended(generation)
    leave(worlds, config)
    text = text_of(s3, key_of(generation, first))
    assert "killed by signal 11" in text and "Fatal Python error: Segmentation fault" in text
    assert "stepping.py" in text


def test_a_world_that_hung_leaves_the_stacks_of_every_pod(worlds, endpoint, s3):
    first, second = worlds.pods
    config = config_at(endpoint)
    generation = worlds.start(first, second, config=config)
    second.until_step(generation, 2)
    second.behave("stand still", 0)
    second.until(lambda _: (second.root / "standing-still").exists())
    worlds.start(action="stop", reason="Hang", drain=False, config=config)
    for pod in worlds.pods:
        pod.until_ended(generation)
    leave(worlds, config)
    assert keys(s3) == [key_of(generation, first), key_of(generation, second)]
    assert "stand_still" in text_of(s3, key_of(generation, second))
    assert "all_reduce" in text_of(s3, key_of(generation, first))


def test_a_world_that_is_replaced_or_succeeds_leaves_nothing(worlds, endpoint, s3):
    first, second = worlds.pods
    config = config_at(endpoint)
    before = worlds.start(first, second, config=config)
    first.until_step(before, 1)
    # The leader hears of it first, as it must here: had it seen its peer leave, it would have an end to tell.
    after = worlds.start(first, to=[first], config=config, reason="NodeLost", drain=False)
    first.until_step(after, 1)
    second.until_ended(before)
    leave(worlds, config)
    assert keys(s3) == []


def test_a_store_that_is_away_is_counted_and_holds_nobody_up(worlds, s3):
    first = worlds.pods[0]
    config = config_at("http://127.0.0.1:9")  # nobody listens there
    generation = worlds.start(first, config=config)
    first.until_step(generation, 2)
    first.behave("bug", 0)
    first.until_ended(generation)
    following = worlds.start(first, config=config)
    first.until_step(following, 2)  # while it is tried

    def counted(_):
        families = text_string_to_metric_families(first.get("/metrics"))
        samples = [s for family in families for s in family.samples if "housekeeping" in s.name]
        return [s.value for s in samples if s.labels["task"] == "failures"] == [1.0]

    first.until(counted, seconds=120)
    leave(worlds, config)


def test_objects_are_written_once_and_no_more_than_a_bounded_number(endpoint, s3, monkeypatch):
    monkeypatch.setattr(failure_logs, "MOST_STORED", 2)
    failed = []
    config, stored = config_at(endpoint), FailureLogs("tiny-w0", failed.append)
    fields = {"run_uid": "run", "action": "run", "stage": "walk", "config_hash": config.hash(), "reason": "Started"}
    rosters = [Roster(**fields, generation=number, members=[], port=1, processes_per_node=2) for number in (5, 6, 7)]
    stored.store(config, rosters[0], "first")
    stored.wait(60)
    other = FailureLogs("tiny-w0", failed.append)
    other.store(config, rosters[0], "second")
    other.wait(60)
    assert failed == ["walk"], "another text in its place is refused, and counted"
    for roster in rosters[1:]:
        stored.store(config, roster, "next")
    stored.wait(60)
    prefix = failures_prefix("runs", "tiny", "run")
    assert keys(s3) == [f"{prefix}/g00000{n}-tiny-w0.txt.gz" for n in (5, 6)]
    assert text_of(s3, keys(s3)[0]) == "first"
