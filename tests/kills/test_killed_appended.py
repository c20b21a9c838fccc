"""Data that is appended while a run lives, and a worker that is killed meanwhile: the whole command, a real S3."""

from itertools import pairwise

import psutil
import pytest
import yaml
from support.local_process import LocalProcess
from support.storage_runs import kill_worker, object_server
from support.training_worlds import CHANNELS, CONTEXT, POOLED, make_latents

from videotrain.objectstore.s3_client import s3_client, secret_manifest
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer import cli
from videotrain_trainer.data.append import append
from videotrain_trainer.storage import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVERY, STEPS = 10, 240
SIZES = {
    "base": {"64px/8f/1:1": (30, 2, (2, 2, 2)), "64px/16f/1:1": (11, 1, (4, 2, 2))},
    "first": {"64px/8f/1:1": (9, 2, (2, 2, 2)), "64px/16f/1:1": (1, 1, (4, 2, 2))},
    "second": {"64px/8f/1:1": (5, 2, (2, 2, 2)), "64px/16f/1:1": (6, 1, (4, 2, 2))},
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running S3 server with three encoded sets in its bucket."""
    with object_server(tmp_path) as running:
        keys = running.credentials
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret_key)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = s3_client(running.endpoint, keys, "us-east-1", timeout_seconds=60)
        for name, sizes in SIZES.items():
            folder = tmp_path / "sets" / name
            folder.mkdir(parents=True)
            assert cli.main(["index", make_latents(folder, sizes=sizes, prefix=f"{name}-")]) == 0
            for path in (folder / "latents").rglob("*"):
                if path.is_file():
                    client.upload_file(str(path), "bucket", f"{name}/{path.relative_to(folder / 'latents')}")
        yield running


def manifest(server, name):
    """A run that begins with encoded clips."""
    documents = [
        {
            "apiVersion": "videotrain.dev/v1alpha1", "kind": "VideoTrainingRun", "metadata": {"name": name},
            "spec": {
                "model": {"preset": "mmdit-tiny-dcae"},
                "autoencoder": {"preset": "dc-ae-tiny", "latentChannels": CHANNELS},
                "textEncoder": {"maxTokens": 8, "contextDim": CONTEXT, "pooledDim": POOLED},
                "dataset": {"latents": "s3://bucket/base"},
                "storage": {
                    "uri": "s3://bucket/runs", "endpointUrl": server.endpoint, "credentialsSecret": "keys"
                },
                "pool": {"gpusPerNode": 2, "pricePerGpuHour": "2.00"},
                "checkpoint": {"everySteps": 15, "keepLast": 2},
                "failurePolicy": {"hangSeconds": 60, "startSeconds": 180, "graceSeconds": 30},
                "stages": [{"name": "train", "task": "train", "train": {
                    "steps": STEPS,
                    "appendedEverySteps": EVERY,
                    "buckets": [
                        {"resolution": "64px", "frames": 8, "batchSize": 2},
                        {"resolution": "64px", "frames": 16, "batchSize": 1},
                    ],
                    "optimizer": {"learningRate": [{"value": 1.0e-3}]},
                    "parallel": {"microBatchesPerStep": 2},
                    "precision": "fp32",
                }}],
            },
        },
        secret_manifest("keys", "default", server.credentials),
    ]  # fmt: skip
    path = server.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


@pytest.fixture
def start(server):
    """Starts the command; what still runs at the end of the test is killed."""
    started = []

    def start_run(name):
        started.append(LocalProcess(manifest(server, name), server.folder / name, "--device", "cpu"))
        return started[-1]

    yield start_run
    for local in started:
        if local.process.poll() is None:
            local.process.kill()
            local.process.wait()
        psutil.wait_procs(local.processes(), timeout=30)
        local.errors.close()
        local.stdout.close()


def samples_of(local):
    assert local.end() == 0, local.told()
    assert local.processes() == []
    (stage,) = local.summary()["samples"]["stages"]
    assert (stage["repeated"], stage["lost"], local.summary()["samples"]["problems"]) == (0, 0, [])
    return stage


def taken_in(client, name):
    """What a run decided, by object."""
    prefix = layout.taken_in(f"runs/{name}/train", 0).rsplit("/", 1)[0]
    keys = [found["Key"] for found in client.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]]
    return {key: client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}


def test_a_run_whose_worker_is_killed_takes_in_what_is_appended_as_one_that_nothing_happens_to(server, start):
    storage = Storage(uri="s3://bucket/runs", endpoint_url=server.endpoint)
    store = ObjectStore.for_storage(storage)
    living = start("living")
    for step, name in ((20, "first"), (150, "second")):
        living.until_step("train", step)
        append(store, "s3://bucket/base", f"s3://bucket/{name}")
        living.until_step("train", step + 2 * EVERY)
        kill_worker(living.workdir)
    lived = samples_of(living)
    generations = living.summary()["stages"][0]["generations"]
    assert len(generations) == 3 and any(
        one["last_step"] >= other["first_step"] for one, other in pairwise(generations)
    )
    assert set(lived["sources"]) == {"data", "data+1", "data+2"}

    # What was decided when is all that the order depends on: the same decisions, and nothing else happens.
    client = s3_client(server.endpoint, server.credentials, "us-east-1", timeout_seconds=60)
    decisions = taken_in(client, "living")
    assert len(decisions) == STEPS // EVERY
    for key, data in decisions.items():
        client.put_object(Bucket="bucket", Key=key.replace("/living/", "/calm/"), Body=data)
    calm = samples_of(start("calm"))
    assert {**calm, "name": ""} == {**lived, "name": ""}
    assert taken_in(client, "calm").keys() == {key.replace("/living/", "/calm/") for key in decisions}
