import sys
from pathlib import Path

import pytest
import yaml

from videotrain.cli import main
from videotrain.errors import UsageError
from videotrain.local.machine import Machine
from videotrain.local.prepare import prepare, with_storage
from videotrain.objectstore.s3_client import Credentials
from videotrain.processes.devices import Found

TINY = Path(__file__).parents[4] / "manifests" / "examples" / "tiny.yaml"


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    """So that nothing here depends on the one that runs it."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(64, 10**12)))


def test_a_missing_trainer_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs the program videotrain-trainer .*pip install ./api"):
        prepare(TINY, None, None, ())


@pytest.fixture
def videos(tmp_path):
    """A folder with something in it, for nothing here looks inside."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    return folder


@pytest.fixture
def two_nodes(tmp_path):
    manifest = yaml.safe_load(TINY.read_text())
    manifest["spec"]["nodes"] = {"min": 1, "max": 2}
    for stage in manifest["spec"]["stages"]:
        if stage["task"] in ("autoencoder", "train"):
            stage[stage["task"]]["parallel"] = {"microBatchesPerStep": 2}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path


def gpus(count):
    return Found(names=tuple(map(str, range(count))), detail=f"{count} x H200")


@pytest.mark.parametrize(
    ("count", "nodes"), [(0, ((), ())), (1, ((), ())), (2, (("0",), ("1",))), (8, (("0",), ("1",)))]
)
def test_the_nodes_share_the_gpus_that_there_are(two_nodes, videos, count, nodes):
    prepared = prepare(two_nodes, videos, None, (), "auto", gpus(count))
    assert prepared.shares.nodes == nodes
    filled = with_storage(prepared, "http://127.0.0.1:1", Credentials("key", "secret"))
    assert filled.shares == prepared.shares


@pytest.mark.parametrize(("count", "shown"), [(1, ()), (2, ()), (8, tuple("01234567"))])
def test_one_node_takes_all_eight_gpus_of_a_box_and_the_cpu_where_there_are_fewer(tmp_path, videos, count, shown):
    manifest = yaml.safe_load(TINY.read_text())
    manifest["spec"]["pool"]["gpusPerNode"] = 8
    for stage in manifest["spec"]["stages"]:
        if stage["task"] in ("autoencoder", "train"):
            stage[stage["task"]]["parallel"] = {"microBatchesPerStep": 8}
    path = tmp_path / "box.yaml"
    path.write_text(yaml.safe_dump(manifest))
    prepared = prepare(path, videos, None, (), "auto", gpus(count))
    assert prepared.shares.nodes == (shown,)


def test_a_run_that_would_have_too_few_gpus_is_refused_with_the_fields_to_change(two_nodes, videos):
    wanted = r"2 nodes with 1 worker process each would need 2 GPUs.*1 GPU can.*lower nodes.max or pool.gpusPerNode"
    with pytest.raises(UsageError, match=wanted):
        prepare(two_nodes, videos, None, (), "cuda", gpus(1))


def test_nothing_is_started_for_a_refused_device(tmp_path, videos, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    workdir = tmp_path / "w"
    assert main(["local", str(TINY), "--workdir", str(workdir), "--data", str(videos), "--device", "cuda"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "0 GPUs can be used here (CUDA_VISIBLE_DEVICES names no GPU)" in told.err
    assert not workdir.exists()


def test_every_pool_has_its_nodes_and_pools_share_the_gpus(two_nodes, videos):
    manifest = yaml.safe_load(two_nodes.read_text())
    stages = {stage["task"]: stage for stage in manifest["spec"]["stages"]}
    stages["curate"]["pool"] = {"gpusPerNode": 0, "pricePerNodeHour": "1.00", "nodeSelector": {"class": "cpu"}}
    stages["curate"]["nodes"] = {"min": 1, "max": 3}
    others = {"gpusPerNode": 2, "gpuResource": "amd.com/gpu", "pricePerGpuHour": "1.00", "nodeSelector": {"class": "b"}}
    stages["encode"]["pool"] = others
    stages["encode"]["nodes"] = {"min": 1, "max": 1}
    two_nodes.write_text(yaml.safe_dump(manifest))
    prepared = prepare(two_nodes, videos, None, (), "auto", gpus(2))
    assert prepared.shares.nodes == ((), (), (), ("0",), ("1",), ("0", "1"))
    assert "node-5: 0, 1" in prepared.shares.summary
    offered = [(dict(shape.allocatable), dict(shape.labels)) for shape in prepared.shapes]
    plain = ({"nvidia.com/gpu": 1}, {})
    assert offered == [({}, {"class": "cpu"})] * 3 + [plain] * 2 + [({"amd.com/gpu": 2}, {"class": "b"})]


def test_keys_that_expire_are_refused_before_a_worker_has_them(tmp_path, videos, monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "ASIA1"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "token-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    manifest = yaml.safe_load(TINY.read_text())
    manifest["spec"]["storage"]["endpointUrl"] = "http://127.0.0.1:9"
    path = tmp_path / "stored.yaml"
    path.write_text(yaml.safe_dump(manifest))
    with pytest.raises(UsageError, match=r"spec\.storage\.credentialsSecret: not set.*session token.*name a Secret"):
        prepare(path, videos, None, ())
