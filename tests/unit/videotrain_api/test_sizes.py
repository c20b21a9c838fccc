"""What would not fit into the objects of a run is refused with the run, not when its nodes are held."""

from __future__ import annotations

from typing import Any

import pytest
from support.stored_sizes import go_json

from videotrain_api.frozen_config import config_data
from videotrain_api.resource.stored_size import LARGEST_CONFIG_MAP, cut, stored_bytes
from videotrain_api.rules.sizes import LARGEST_SPEC
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run


def captions(size: int, letter: str = "x") -> dict[str, str]:
    return {f"clip-{number}": letter * 1000 for number in range(size // 1000)}


@pytest.mark.parametrize("letter", ["x", "<", "é"])
def test_a_spec_that_leaves_no_room_for_its_status_is_refused(manifest: dict[str, Any], letter: str) -> None:
    manifest["spec"]["dataset"]["captions"] = captions(LARGEST_SPEC, letter)
    assert len(go_json(manifest["spec"])) > LARGEST_SPEC
    with pytest.raises(ManifestError, match=r"spec: '\d+ bytes': allowed: 196608 bytes in all"):
        parse_run(manifest)


def test_stages_that_do_not_fit_into_one_config_map_are_refused(manifest: dict[str, Any]) -> None:
    """Each stage's configuration holds the dataset with its captions."""
    manifest["spec"]["dataset"]["captions"] = captions(140_000)
    assert sum(map(len, config_data(parse_run(manifest)).values())) < LARGEST_CONFIG_MAP
    manifest["spec"]["dataset"]["captions"] = captions(190_000)
    with pytest.raises(ManifestError, match=r"stages: '5 configurations, \d+ bytes': allowed: \d+ bytes: have fewer"):
        parse_run(manifest)


@pytest.mark.parametrize("letter", ["x", "<", ">", "&", '"', "\\", "\n", "\u2028", "é", "漢", "😀"])
def test_a_text_takes_as_many_bytes_as_it_is_counted_for(letter: str) -> None:
    text = f"a{letter * 700}b"
    assert stored_bytes(text) == len(go_json(text)) - 2
    for most in (0, 1, 500, 10_000):
        kept = cut(text, most)
        assert text.startswith(kept)
        assert stored_bytes(kept) <= most
        assert kept == text or stored_bytes(text[: len(kept) + 1]) > most
