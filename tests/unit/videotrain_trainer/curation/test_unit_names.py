"""Names of units of curation: what changes them makes a video be read again."""

import json

import pytest
import xxhash

from videotrain_api.resource.stages import CurateTask, ImageModel
from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_trainer.curation import work as curation
from videotrain_trainer.curation.work import LATER_FIELDS, CurateWork, find_ranges


@pytest.fixture
def names(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a video")

    def of(**fields):
        dataset, storage = Dataset(videos=tmp_path.as_uri()), Storage(uri="s3://bucket/runs")
        work = CurateWork(dataset, storage, tmp_path.as_uri(), CurateTask(**fields), lambda *_: None)
        return [unit.name for part in find_ranges(work) for unit in part.units]

    return of


def test_fields_that_came_later_are_in_no_name_until_they_are_set(names, monkeypatch):
    hashed = []
    plain = xxhash.xxh3_128_hexdigest
    monkeypatch.setattr(curation.xxhash, "xxh3_128_hexdigest", lambda data: hashed.append(data) or plain(data))
    assert names() == names(min_aesthetic=5.0, min_motion=1.0)
    readings = [json.loads(data)[5] for data in hashed]
    assert not any(field in reading for field in LATER_FIELDS for reading in readings)


@pytest.mark.parametrize(
    "fields",
    [
        {"shot_detector": "transnetv2"},
        {"in_place": True},
        {"image_model": ImageModel(weights="/models/clip")},
        {"min_seconds": 3.0},
    ],
)
def test_what_decides_what_is_read_is_in_the_name(names, fields):
    assert names(**fields) != names()
