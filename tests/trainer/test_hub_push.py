"""A folder through the hub's own client to a server that takes uploads as the hub does."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants
from support.hub_server import COMMIT, hub_server

from videotrain_trainer.cli import main
from videotrain_trainer.errors import ConfigError, StorageDenied, StorageUnavailable
from videotrain_trainer.hub_push import push_folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "export"
    (path / "vae").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a card\n")
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 64)
    (path / "vae" / "config.json").write_text("{}")
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def test_all_files_arrive_in_one_commit_of_a_repository_that_is_made(hub, folder):
    pushed = push_folder(folder, "hf://org/model", private=True)
    assert pushed.commit == COMMIT
    assert hub.repositories["org/model"]["visibility"] == "private"
    found = hub.files["org/model", "main"]
    assert {name: data for name, data in found.items() if name != ".gitattributes"} == {
        "README.md": (folder / "README.md").read_bytes(),
        "adapter_model.safetensors": (folder / "adapter_model.safetensors").read_bytes(),
        "vae/config.json": b"{}",
    }
    assert set(hub.cards) == {(folder / "README.md").read_text()}, "the client asks the hub about the card, twice"
    push_folder(folder, "hf://org/model")  # a repository that is there is gone on with


def test_a_branch_is_made_and_pushed_to_by_the_command(hub, folder, capsys):
    assert main(["push", str(folder), "hf://org/model@v1"]) == 0
    assert hub.branches == [("org/model", "v1")]
    assert "README.md" in hub.files["org/model", "v1"]
    assert COMMIT in capsys.readouterr().out


def test_without_a_token_it_says_how_to_log_in_and_where_the_folder_is(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageDenied, match=r"hf auth login.*What was to be pushed is in .*export"):
        push_folder(folder, "hf://org/model")
    assert hub.files == {}


def test_where_no_hub_answers_it_says_how_to_push_by_hand(folder, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listened to
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(StorageUnavailable, match=r"cannot be reached.*hf upload org/model .*export"):
            push_folder(folder, "hf://org/model")


@pytest.mark.parametrize("uri", ["hf://org", "hf://datasets/org/x", "hf://org/model/file", "s3://org/model"])
def test_other_places_are_refused(folder, uri):
    with pytest.raises(ConfigError, match=r"allowed: hf://ORGANISATION/REPOSITORY\[@BRANCH\]"):
        push_folder(folder, uri)


def test_a_client_that_is_not_to_ask_says_so(folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set"):
        push_folder(folder, "hf://org/model")
