"""A drawing is kept if and only if what is in its files is the same, wherever they lie."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.sampling import Drain, config_of, context_of
from support.sampling_folder import flags_of, make_folder

from videotrain_trainer import cli
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.sampling import contents
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import sample


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work").mkdir()
    return make_folder(tmp_path / "work")


def drawn(folder, capsys, *flags):
    """Whether the command kept what was there."""
    assert cli.main(flags_of(folder, "--prompt", "A cat.", "--json", *flags)) == 0
    (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    return not line["kept"]


@torch.no_grad()
def changed(path):
    """Other values under the same path, of the same size."""
    state = load_file(path)
    name = next(iter(state))
    save_file(state | {name: state[name] + 0.5}, path)


@pytest.mark.parametrize("name", ["model.safetensors", "autoencoder.safetensors", "picture.png"])
def test_other_content_under_the_same_path_is_drawn_again(name, folder, capsys):
    flags = ["--image", folder / "picture.png"]
    assert drawn(folder, capsys, *flags)
    assert not drawn(folder, capsys, *flags)
    if name == "picture.png":
        shutil.copyfile(folder / "last.png", folder / name)
    else:
        changed(folder / name)
    assert drawn(folder, capsys, *flags)
    assert not drawn(folder, capsys, *flags)


def test_a_folder_that_was_moved_keeps_its_drawings(folder, capsys):
    assert drawn(folder, capsys, "--image", folder / "picture.png")
    moved = folder.with_name("elsewhere")
    folder.rename(moved)
    assert not drawn(moved, capsys, "--image", moved / "picture.png")


def test_another_configuration_of_the_same_weights_is_another_drawing(folder, capsys):
    assert drawn(folder, capsys)
    assert drawn(folder, capsys, "--tile-pixels", 128, "--tile-frames", 16)
    config = json.loads((folder / "models.json").read_text())
    config["autoencoder"]["scalingFactor"] = 2.0
    (folder / "models.json").write_text(json.dumps(config))
    assert drawn(folder, capsys)


def test_a_reference_that_is_not_there_is_refused_before_anything_is_drawn(folder, capsys):
    rows = f"text,image\nA cat.,\nA dog.,{folder}/nowhere.png\n"
    (folder / "prompts.csv").write_text(rows)
    assert cli.main(flags_of(folder, "--prompts", folder / "prompts.csv")) != 0
    assert f"{folder}/nowhere.png: there is no such file" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("alone")
def test_a_sample_stage_draws_again_what_other_weights_made(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "run/train/weights").mkdir(parents=True)
    (folder / "scratch").mkdir()
    weights = folder / "run/train/weights/model.safetensors"
    shutil.copyfile(folder / "model.safetensors", weights)
    config = config_of(folder, from_dataset=0)

    def resumed():
        context = context_of(folder, config, drain=Drain())
        assert sample.run(context) == "completed"
        return context.records[0].resumed_step

    assert resumed() == 0
    assert resumed() == 2
    shutil.copyfile(folder / "last.png", folder / "picture.png")
    assert resumed() == 1
    changed(weights)
    assert resumed() == 0


class TestLargeFiles:
    @pytest.fixture
    def path(self, tmp_path, monkeypatch):
        monkeypatch.setattr(contents, "REMEMBERED_BYTES", 0)
        monkeypatch.setattr(contents, "SETTLED_NS", -1)
        path = tmp_path / "model.bin"
        path.write_bytes(b"one")
        return path

    @pytest.fixture
    def name(self, tmp_path, storage):
        return lambda path: Contents(ObjectStore.for_storage(storage), tmp_path / "cache").of(str(path))

    def test_one_is_read_once_as_long_as_the_file_system_says_that_it_is_the_same(self, path, name, monkeypatch):
        read, plain = [], contents._sha256
        monkeypatch.setattr(contents, "_sha256", lambda path: read.append(path) or plain(path))
        first = name(path)
        assert [name(path), name(path)] == [first, first]
        assert len(read) == 1
        path.write_bytes(b"two")
        second = name(path)
        assert second != first
        assert len(read) == 2
        path.write_bytes(b"one")
        assert name(path) == first

    def test_a_change_is_seen_although_size_inode_and_time_of_modification_are_set_back(self, path, name):
        import os

        before, first = path.stat(), name(path)
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_ino, after.st_mtime_ns) == (before.st_size, before.st_ino, before.st_mtime_ns)
        assert name(path) != first

    def test_one_that_changed_just_now_is_not_remembered(self, path, name, monkeypatch, tmp_path):
        monkeypatch.setattr(contents, "SETTLED_NS", 10**18)
        name(path)
        (record,) = (tmp_path / "cache").iterdir()
        assert record.read_text() == ""

    def test_a_record_that_was_cut_off_is_made_again(self, path, name, tmp_path):
        first = name(path)
        (record,) = (tmp_path / "cache").iterdir()
        record.write_text(record.read_text()[:20])
        assert name(path) == first
        assert json.loads(record.read_text())["content"] == first


def test_objects_are_named_by_tag_and_size_without_being_read(storage, store, tmp_path, monkeypatch):
    uri = f"{storage.uri}/weights.bin"
    names = Contents(store, tmp_path)
    store.put(uri, b"one")
    monkeypatch.setattr(ObjectStore, "get_range", None)
    monkeypatch.setattr(ObjectStore, "get", None)
    first = names.of(uri)
    assert names.of(uri) == first
    store.put(uri, b"two")
    assert names.of(uri) != first
    with pytest.raises(ObjectMissing):
        names.of(f"{storage.uri}/nothing")


def test_shards_and_text_encoders_are_named_by_all_their_files(store, storage, tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, name in enumerate("ab", start=1):
        save_file({name: torch.zeros(2)}, folder / f"{number}.safetensors")
    names = Contents(store, tmp_path)
    first = names.of_weights(str(folder))
    save_file({"b": torch.ones(2)}, folder / "2.safetensors")
    assert names.of_weights(str(folder)) != first
    local = names._of_folder(folder.as_uri())
    (folder / "config.json").write_text("{}")
    assert names._of_folder(str(folder)) != local
    for path in folder.iterdir():
        store.put(f"{storage.uri}/sharded/{path.name}", path)
    remote = names._of_folder(f"{storage.uri}/sharded")
    store.put(f"{storage.uri}/sharded/config.json", b"[]")
    assert names._of_folder(f"{storage.uri}/sharded") != remote
