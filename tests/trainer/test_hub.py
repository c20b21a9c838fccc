"""hf:// URIs through the hub's own client: its cache, its offline switch, clear words where it cannot be reached."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, RepoFile, constants
from huggingface_hub.utils import _http as http_client
from safetensors.torch import save_file

from videotrain_api.resource.locations import hub_place
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer import hub as hub_module
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing, StorageUnavailable
from videotrain_trainer.file_system import read_files
from videotrain_trainer.hub import hub_file, hub_files
from videotrain_trainer.networks.weights import open_weights
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.files import local_folder

COMMIT = "0123456789012345678901234567890123456789"


def cached(root: Path, kind: str, repository: str, files: dict[str, bytes]) -> None:
    """A repository as the client keeps it: blobs, links to them in a snapshot, and the commit of `main`."""
    folder = root / f"{kind}s--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    for number, (name, data) in enumerate(files.items()):
        blob, link = folder / f"blobs/{number:040d}", folder / f"snapshots/{COMMIT}/{name}"
        blob.write_bytes(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


@pytest.fixture(autouse=True)
def nothing_resolved(monkeypatch):
    monkeypatch.setattr(hub_module, "_commits", {})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline client with two repositories in its cache."""
    save_file({"a": torch.ones(2, 3)}, tmp_path / "m.safetensors")
    weights = (tmp_path / "m.safetensors").read_bytes()
    files = {"model.safetensors": weights, "t5/config.json": b"{}", "t5/model.safetensors": weights, "README.md": b"#"}
    cached(tmp_path / "hub", "model", "org/model", files)
    cached(tmp_path / "hub", "dataset", "org/videos", {"clips/one.mp4": b"1", "captions.csv": b"path,text\na,b\n"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def store(monkeypatch):
    return ObjectStore(Storage(uri="s3://unused"), patience=0)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("hf://org/model", ("model", "org/model", None, "")),
        ("hf://org/model/", ("model", "org/model", None, "")),
        ("hf://org/model@v1/a/b.safetensors", ("model", "org/model", "v1", "a/b.safetensors")),
        ("hf://datasets/org/videos/clips", ("dataset", "org/videos", None, "clips")),
        ("hf://org", None),
        ("hf://org/model/../x", None),
        ("hf://org/model//x", None),
    ],
)
def test_what_a_uri_means(uri, place):
    found = hub_place(uri)
    assert place == (found and (found.kind, found.repository, found.revision, found.path))


@pytest.mark.usefixtures("hub")
class TestInTheCache:
    def test_weights(self, store):
        for uri in ("hf://org/model", "hf://org/model@main/model.safetensors"):
            weights = open_weights(uri, store=store)
            assert weights.shapes == {"a": (2, 3)}
            assert torch.equal(weights.read("a"), torch.ones(2, 3))

    def test_objects(self, store):
        uri = "hf://datasets/org/videos/clips/one.mp4"
        assert (store.get(uri), store.stat(uri).size, store.exists(uri)) == (b"1", 1, True)
        (found,) = store.list("hf://datasets/org/videos/clips")
        assert (found.uri, found.size) == (uri, 1)
        assert store.list_some("hf://datasets/org/videos", "hf://datasets/org/videos/captions.csv", 5) == [found]

    def test_tables(self, store):
        data = read_files(store, "hf://datasets/org/videos/captions.csv", lambda files, path: files.cat_file(path))
        assert data == b"path,text\na,b\n"

    def test_folders_of_text_encoders(self, store, tmp_path):
        folder = local_folder("hf://org/model", store, tmp_path / "cache")
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert found == {"model.safetensors", "t5/config.json", "t5/model.safetensors"}

    def test_nothing_is_written_there(self, store):
        for write in (lambda uri: store.put(uri, b"x"), store.delete):
            with pytest.raises(ConfigError, match="nothing is written to the hub"):
                write("hf://org/model/model.safetensors")
        assert store.get("hf://org/model/README.md") == b"#"

    @pytest.mark.parametrize("uri", ["hf://org/other/model.safetensors", "hf://org/model@v2/model.safetensors"])
    def test_what_is_not_cached_says_how_to_get_it(self, uri):
        with pytest.raises(StorageUnavailable) as caught:
            hub_file(uri)
        for part in ("HF_HUB_OFFLINE", "`hf download org/", "name them by s3://"):
            assert part in str(caught.value)

    def test_a_repository_is_no_file(self):
        with pytest.raises(ObjectMissing, match="not a file of one"):
            hub_file("hf://org/model")


@pytest.mark.parametrize("look", [hub_file, hub_files])
def test_a_hub_that_cannot_be_reached(look, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    # The client asks six times; how long it rests between is its own business.
    monkeypatch.setattr(http_client, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    with pytest.raises(StorageUnavailable, match="hf download org/model"):
        look("hf://org/model/model.safetensors")


@dataclass
class Hub:
    """A hub whose branches move with every question; what it was asked for."""

    names: list = field(default_factory=lambda: ["a"])
    commits: list = field(default_factory=list)

    def repo_info(self, api, repository, **where):
        self.commits.append(f"{len(self.commits):040x}")
        return SimpleNamespace(sha=self.commits[-1])

    def tree(self, api, repository, path, *, recursive, repo_type, revision):
        assert revision == self.commits[0]
        return [RepoFile(path=name, size=1, oid="0") for name in self.names]


@pytest.fixture
def moving(monkeypatch, tmp_path):
    hub = Hub()
    (tmp_path / "a").write_bytes(b"1")

    def download(repository, path, *, repo_type, revision):
        assert revision == hub.commits[0]
        return str(tmp_path / path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", lambda *given, **where: hub.repo_info(*given, **where))
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *given, **where: hub.tree(*given, **where))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return hub


def test_a_branch_that_moves_is_read_at_one_commit(moving, store):
    for _ in range(2):
        assert store.get("hf://org/model@main/a") == b"1"
        assert [found.size for found in store.list("hf://org/model@main")] == [1]
    assert len(moving.commits) == 1


def test_a_commit_needs_no_question(moving, store):
    moving.commits = [COMMIT]
    assert store.get(f"hf://org/model@{COMMIT}/a") == b"1"
    assert moving.commits == [COMMIT]


def test_names_that_lead_out_of_a_folder_are_refused(moving):
    moving.names = ["a", "clips/../../b"]
    with pytest.raises(DataError, match=r"clips/\.\./\.\./b"):
        hub_files("hf://org/model")


@pytest.mark.usefixtures("hub")
def test_the_cache_stands_in_for_a_hub_that_does_not_answer(monkeypatch):
    def cut(*_, **__):
        raise ConnectionError("cut")

    monkeypatch.setattr(HfApi, "repo_info", cut)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub_file("hf://org/model/README.md").read_bytes() == b"#"
