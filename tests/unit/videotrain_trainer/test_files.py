"""Files and folders that are written whole or not at all."""

import pytest

from videotrain_trainer.files import replacing


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_takes_its_place_at_the_end(tmp_path, shared):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, shared=shared) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.suffix == ".txt", "writers choose a format by it"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_takes_its_place_over_what_a_killed_process_left(tmp_path):
    (tmp_path / ".partial-out").mkdir()
    (tmp_path / ".partial-out" / "half").touch()
    with replacing(tmp_path / "out") as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["whole"]


def half(partial):
    partial.write_text("new")
    raise OSError(28, "full")


def test_an_error_leaves_the_old_content_and_no_part(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        half(partial)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
