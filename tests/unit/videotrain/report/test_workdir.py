import io
from datetime import timedelta

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from videotrain import object_requests
from videotrain.report.workdir import ObjectMissingError, S3Objects, read_records, split_uri


def test_an_empty_working_directory_has_no_records(tmp_path):
    assert read_records(tmp_path).generations == ()


def test_of_a_step_done_twice_the_highest_generation_counts(finished):
    kept = read_records(finished.workdir).kept_steps("train-64px")
    assert [r.step for r in kept] == list(range(1, 121))
    assert {r.generation for r in kept if r.step <= 40} == {3}
    assert {r.generation for r in kept if 41 <= r.step <= 80} == {4}


def test_steps_that_a_later_world_never_reached_again_do_not_count(synthetic):
    train = synthetic.stage("train", "train", 10)
    synthetic.generation(train, "Started", [0], 1, 9, cause="infrastructure", lost_from=4, loss=float)
    synthetic.generation(train, "NodeLost", [0], 5, 6, cause="application", loss=float)
    assert [r.step for r in read_records(synthetic.workdir).kept_steps("train")] == [1, 2, 3, 4, 5, 6]


def test_ranks_of_one_world_count_once(finished):
    generation = read_records(finished.workdir).generation(3)
    assert len(generation.steps) == 47
    assert generation.pods == ("demo-w0", "demo-w1")


def test_a_torn_last_line_is_tolerated_and_counted(finished):
    records = read_records(finished.workdir)
    assert records.torn_lines == 2  # both ranks of the lost pod
    assert records.bad_lines == ()


def test_a_broken_line_in_the_middle_is_named(synthetic):
    stage = synthetic.stage("train", "train", 2)
    synthetic.generation(stage, "Started", [0], 1, 2)
    path = next(synthetic.workdir.glob("pods/*/run/videotrain/records-1-0.jsonl"))
    path.write_text("garbage\n" + path.read_text())
    records = read_records(synthetic.workdir)
    assert records.bad_lines == (f"{path}:1",)
    assert len(records.generations[0].steps) == 2


def test_a_world_is_ready_when_its_last_worker_is(synthetic):
    stage = synthetic.stage("train", "train", 1)
    synthetic.generation(stage, "Started", [0], 1, 1)
    late = synthetic.now + timedelta(seconds=9)
    started = {"kind": "started", "generation": 1, "stage": "train", "at": late.isoformat(), "worldSize": 2}
    synthetic.write("demo-w0", 1, [started | {"resumedStep": 0, "totalSteps": 1}])
    assert read_records(synthetic.workdir).generations[0].started.at == late


def test_what_curation_tells_is_a_record_but_no_step(synthetic):
    stage = synthetic.stage("curate", "curate", 2)
    synthetic.generation(stage, "Started", [0], 1, 2)
    told = {"kind": "curation", "generation": 1, "stage": "curate", "at": synthetic.now.isoformat()}
    synthetic.write("demo-w1", 0, [told | {"counts": {"clips": 3, "dropped": {"still": 2}}}])
    records = read_records(synthetic.workdir)
    assert records.bad_lines == ()
    assert [r.step for r in records.kept_steps("curate")] == [1, 2]
    assert records.generation(1).pods == ("demo-w0", "demo-w1")


def test_checkpoints_are_listed_once_in_order_of_commit(finished):
    assert [c.step for c in read_records(finished.workdir).checkpoints] == [40, 80, 120]


def test_s3_uris_are_split_and_others_refused():
    assert split_uri("s3://runs/a/b#c?d.json") == ("runs", "a/b#c?d.json")
    for uri in ("https://x/y", "s3:///y", "runs/a"):
        with pytest.raises(ValueError, match="s3://BUCKET/KEY"):
            split_uri(uri)


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(object_requests, "PAUSE_SECONDS", 0)
    return boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")


def body(data: bytes, length: int) -> dict[str, object]:
    return {"Body": StreamingBody(io.BytesIO(data), length)}


def test_no_single_answer_decides_what_an_object_is(client):
    with Stubber(client) as stub:
        stub.add_client_error("get_object", "NoSuchKey", http_status_code=404)
        stub.add_client_error("get_object", "RequestTimeTooSkewed", http_status_code=403)
        stub.add_response("get_object", body(b"cut", 5))
        stub.add_client_error("get_object", "SlowDown", http_status_code=503)
        stub.add_response("get_object", body(b"whole", 5))
        assert S3Objects(client).get("s3://runs/a") == b"whole"
        stub.assert_no_pending_responses()


def test_an_object_is_missing_if_two_answers_say_so(client):
    with Stubber(client) as stub:
        for code in ("NoSuchKey", "InternalError", "NoSuchKey"):
            stub.add_client_error("get_object", code)
        with pytest.raises(ObjectMissingError, match="s3://runs/a"):
            S3Objects(client).get("s3://runs/a")
        stub.assert_no_pending_responses()


def test_a_store_that_refuses_every_time_is_told_with_its_answer(client):
    with Stubber(client) as stub:
        for _ in range(object_requests.ATTEMPTS):
            stub.add_client_error("get_object", "AccessDenied")
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            S3Objects(client).get("s3://runs/a")
        stub.assert_no_pending_responses()


def test_a_download_that_is_not_what_the_store_says_is_made_again(client, tmp_path):
    with Stubber(client) as stub:
        for data in (b"<Error/>", b"what it is"):
            stub.add_response("head_object", {"ContentLength": 10, "ETag": "a"})
            stub.add_response("head_object", {"ContentLength": len(data), "ETag": "a"})
            stub.add_response("get_object", body(data, len(data)) | {"ContentLength": len(data)})
        S3Objects(client).download("s3://runs/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"what it is"


def test_file_uris_are_read_from_disk(tmp_path):
    (tmp_path / "a clip.mp4").write_bytes(b"x")
    uri = (tmp_path / "a clip.mp4").as_uri()
    objects = S3Objects(client=None)
    assert objects.get(uri) == b"x"
    objects.download(uri, tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == b"x"
    with pytest.raises(ObjectMissingError):
        objects.get((tmp_path / "none").as_uri())
