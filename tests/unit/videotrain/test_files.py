"""Files that are written whole or not at all."""

import pytest

from videotrain.files import replace_file


def test_a_file_gets_its_new_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    replace_file(path, "neu: ä")
    assert path.read_text(encoding="utf-8") == "neu: ä"
    replace_file(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_private_file_is_its_owner_s_whatever_a_killed_process_left(tmp_path):
    path = tmp_path / "key"
    left = tmp_path / ".key.partial"
    left.write_text("half")
    left.chmod(0o644)
    replace_file(path, "secret", private=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not left.exists()


def test_the_old_content_stays_when_the_new_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr("videotrain.files.os.fdopen", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        replace_file(path, "new")
    assert path.read_text() == "old"
