import sys
from pathlib import Path

import pytest

from videotrain.errors import UsageError
from videotrain.local.prepare import prepare

TINY = Path(__file__).parents[4] / "manifests" / "examples" / "tiny.yaml"


def test_a_missing_trainer_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs the program videotrain-trainer .*pip install ./api"):
        prepare(TINY, None, None, ())
