"""`videotrain profile` leaves a request that the run's session finds, or says what is wrong with it."""

import pytest

from videotrain.cli import main
from videotrain.embedded.database import DATABASE_FILE
from videotrain.files import PROFILE_REQUEST
from videotrain_api.resource.profiles import parse_profile


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / DATABASE_FILE).touch()
    return tmp_path


def test_each_request_is_another_one(workdir, capsys):
    texts = []
    for _ in range(2):
        assert main(["profile", "--workdir", str(workdir), "--steps", "2", "--ranks", "1,0"]) == 0
        texts.append((workdir / PROFILE_REQUEST).read_text())
    assert [parse_profile(text) for text in texts] == [(2, (0, 1))] * 2
    assert texts[0] != texts[1]
    assert f"videotrain get --workdir {workdir}" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value", "why"), [("--steps", "0", "steps: '0'"), ("--ranks", "x", "ranks: 'x'")])
def test_what_is_not_allowed_is_refused_and_nothing_is_asked(workdir, capsys, option, value, why):
    assert main(["profile", "--workdir", str(workdir), option, value]) == 2
    assert why in capsys.readouterr().err
    assert not (workdir / PROFILE_REQUEST).exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["profile", "--workdir", str(tmp_path)]) == 2
    assert "--workdir of `videotrain local`" in capsys.readouterr().err
