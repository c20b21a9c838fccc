"""`videotrain-trainer check`: what it reads. What it finds is tested with the checks themselves."""

import json

import pytest

from videotrain_trainer.commands.check import _read


@pytest.mark.parametrize("text", [json.dumps({"rate": 5e-05, "seed": 1}), "rate: 5.0e-5\nseed: 1\n"])
def test_numbers_are_numbers_in_json_and_in_yaml(text):
    assert _read(text) == {"rate": 5e-05, "seed": 1}
