"""Every file under bad/ is refused with its field path, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run


def test_the_good_manifest_is_accepted_by_both(manifest, admission):
    assert parse_run(manifest).metadata.name == "good"
    assert admission.refusals(manifest) == []


def test_there_are_more_than_thirty_bad_manifests():
    assert len(list((Path(__file__).parent / "bad").glob("*.yaml"))) > 30


def test_a_bad_manifest_is_refused_with_path_value_and_what_is_allowed(bad, expectation):
    with pytest.raises(ManifestError) as caught:
        parse_run(yaml.safe_load(bad.read_text()))
    found = [problem for problem in caught.value.problems if expectation["allowed"] in problem.message]
    assert [problem.path for problem in found] == [expectation["refused"]], str(caught.value)
    assert expectation["value"] in str(found[0].value)
    assert str(found[0]).startswith(f"{found[0].path}: ")


def test_the_crd_refuses_the_bad_manifests_that_it_can(bad, expectation, admission):
    refusals = admission.refusals(yaml.safe_load(bad.read_text()))
    assert bool(refusals) == (expectation["api server refuses it too"] == "yes"), refusals


def test_all_problems_of_one_manifest_are_listed(manifest):
    manifest["spec"]["nodes"] = {"min": 5, "max": 2}
    manifest["spec"]["stages"][3]["train"]["buckets"][0]["frames"] = 9
    manifest["spec"]["stages"][4]["sample"]["aspectRatio"] = "1:7"
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    paths = {problem.path for problem in caught.value.problems}
    bucket = "spec.stages[3].train.buckets[0].frames"
    assert paths >= {"spec.nodes.min", bucket, "spec.stages[4].sample.aspectRatio"}


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_something_that_is_no_mapping_is_refused(data):
    with pytest.raises(ManifestError, match="a manifest is a mapping"):
        parse_run(data)
