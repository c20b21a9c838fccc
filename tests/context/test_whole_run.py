"""Whole runs whose clips are shared by the workers of a node: they lose nodes, grow and change their degree.

Yardstick is the same recipe with whole clips and nothing that happens. As many samples make a step: twice the
micro-batches, half as large.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
import yaml
from safetensors.torch import load
from support.local_process import LocalProcess
from support.storage_runs import StoredVideos, manifest, object_server
from support.training_worlds import difference

from videotrain.objectstore.s3_client import s3_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LEARNING_RATE, STEPS = 1e-4, 500
ROUNDING = 0.1 * LEARNING_RATE
"""Float32 sums in another order, after 500 steps of AdamW: a tenth of what one step moves a weight at most."""
WHOLE = {"batchSize": 1, "microBatches": 4}
SHARED = {"batchSize": 2, "microBatches": 2, "contextParallel": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def start(server: StoredVideos, name: str, workdir: str, video: dict[str, int], *chaos: str) -> LocalProcess:
    """Two nodes of two workers; `video` is how clips are cut and shared, pictures are always whole."""
    documents = manifest(name, server.endpoint, server.credentials)
    spec: dict[str, Any] = documents[0]["spec"]
    spec["pool"]["gpusPerNode"] = 2
    spec["nodes"] = {"min": 1, "max": 2}
    spec["elasticity"] = {"waitForMaxSeconds": 60, "minGainSeconds": 0}
    spec["checkpoint"] = {"everySteps": 20, "keepLast": 3}
    spec["stages"] = [stage for stage in spec["stages"] if stage["task"] != "sample"]
    for stage in spec["stages"]:
        if stage["task"] in ("train", "autoencoder"):
            stage[stage["task"]]["parallel"] = {"microBatchesPerStep": 4}
    train = spec["stages"][-1]["train"]
    clip = train["buckets"][0]
    train["buckets"] = [clip | video, clip | {"frames": 1, "batchSize": 1}]
    train["optimizer"]["learningRate"] = [{"value": LEARNING_RATE}]
    train["steps"] = STEPS
    path = server.folder / f"{workdir}.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return LocalProcess(path, server.folder / workdir, "--device", "cpu", *chaos)


def ended(local: LocalProcess, code: int = 0) -> dict[str, Any]:
    """Its summary."""
    assert local.end() == code, local.told()
    assert local.processes() == []
    return local.summary()


def weights(server: StoredVideos, name: str) -> Any:
    """Of a run's train stage."""
    client = s3_client(server.endpoint, server.credentials, "us-east-1", timeout_seconds=60)
    found = client.get_object(Bucket="bucket", Key=f"runs/{name}/train/weights/model.safetensors")
    return load(found["Body"].read())


@pytest.fixture(scope="module")
def undisturbed(server):
    return ended(start(server, "whole", "whole", WHOLE)), weights(server, "whole")


def assert_same(server, name, summary, undisturbed):
    expected, taught = undisturbed
    # The last stage is the one that shares clips. A run that was created anew has found the others finished.
    assert summary["samples"]["stages"][-1] == expected["samples"]["stages"][-1]
    assert (summary["samples"]["lost"], summary["samples"]["problems"]) == (0, [])
    apart = difference(weights(server, name), taught)
    print(f"{name}: weights differ by {apart / LEARNING_RATE:.2g} of what a step moves them at most")
    assert apart < ROUNDING


def test_a_run_that_shares_clips_loses_a_node_and_gets_it_back(server, undisturbed):
    local = start(server, "shared", "shared", SHARED, "--chaos", "kill-node@stage=train,step=30")
    summary = ended(local)
    train = next(stage for stage in summary["stages"] if stage["name"] == "train")
    assert [generation["world_size"] for generation in train["generations"]] == [4, 2, 4], local.told()
    assert_same(server, "shared", summary, undisturbed)


def test_a_run_that_shares_clips_is_created_anew_with_whole_ones_and_goes_on(server, undisturbed):
    first = start(server, "moved", "moved-1", SHARED)
    first.until_step("train", 100)
    first.send(signal.SIGINT)
    ended(first, 130)
    second = start(server, "moved", "moved-2", WHOLE)
    started = second.until_step("train", 1)
    assert started["step"] > 100
    assert_same(server, "moved", ended(second), undisturbed)


def test_the_degree_of_a_run_is_edited_while_it_rests_and_edited_again(server, undisturbed):
    """In one working directory, where every generation has a frozen configuration of its own."""
    first = start(server, "edited", "edited", WHOLE)
    first.until_step("train", 100)
    first.send(signal.SIGINT)
    ended(first, 130)
    second = start(server, "edited", "edited", SHARED)
    second.until_step("train", 250)
    second.send(signal.SIGINT)
    summary = ended(second, 130)
    assert any(line.get("message", "").startswith("StagesEdited: ") for line in second.lines)
    train = next(stage for stage in summary["stages"] if stage["name"] == "train")
    assert train["generations"][-1]["first_step"] > 100
    third = start(server, "edited", "edited", WHOLE | {"batchSize": 2, "microBatches": 4})
    assert third.end() == 2
    assert "train.buckets[0].microBatches: 4: would change the order of samples" in third.told()
    assert_same(server, "edited", ended(start(server, "edited", "edited", WHOLE)), undisturbed)
