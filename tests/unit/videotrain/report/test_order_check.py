import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain.report.order_check import check_order, count_repeated, order_digest
from videotrain.report.sections import source_section
from videotrain.report.workdir import ObjectMissingError
from videotrain_api.storage.artifacts import OrderLine, SourceIds


def lines_of(ids, per_step, clips):
    """The order lines of one bucket that gives `ids`, cut into steps."""
    starts = range(0, len(ids), per_step)
    return [
        OrderLine(step=n, epoch=start // clips, bucket="b", ids=ids[start : start + per_step])
        for n, start in enumerate(starts, start=1)
    ]


@given(clips=st.integers(1, 9), per_step=st.integers(1, 7), steps=st.integers(1, 12), data=st.data())
def test_an_order_that_gives_every_clip_once_per_pass_repeats_nothing(clips, per_step, steps, data):
    ids = []
    while len(ids) < steps * per_step:
        ids += data.draw(st.permutations([f"c{n}" for n in range(clips)]))
    assert count_repeated(lines_of(ids[: steps * per_step], per_step, clips)) == 0


@given(clips=st.integers(2, 9), at=st.integers(0, 8))
def test_a_clip_given_twice_in_the_first_pass_is_counted(clips, at):
    ids = [f"c{n}" for n in range(clips)]
    at = at % (clips - 1)
    ids[at + 1] = ids[at]
    assert count_repeated(lines_of(ids, 1, clips)) == 1


def test_a_step_trained_twice_is_counted_as_repeated():
    ids = [f"c{n}" for n in range(12)]
    lines = lines_of(ids, 2, 12)
    assert count_repeated([*lines, lines[2]]) == 2


def test_buckets_are_counted_apart():
    lines = [OrderLine(step=n, epoch=0, bucket=b, ids=["x"]) for n, b in enumerate("abc", start=1)]
    assert count_repeated(lines) == 0


def by_source(step, **sources):
    """A line whose ids are those of the sources in turn; each with its pass."""
    ids, told = [], []
    for name, (epoch, of_source) in sources.items():
        told.append(SourceIds(name=name, epoch=epoch, places=list(range(len(ids), len(ids) + len(of_source)))))
        ids += of_source
    return OrderLine(step=step, epoch=0, bucket="b", ids=ids, sources=told)


def test_sources_of_a_bucket_have_passes_of_their_own():
    lines = [by_source(1, film=(0, ["a"]), own=(0, ["x", "y"])), by_source(2, film=(1, ["a"]), own=(0, ["z", "w"]))]
    assert count_repeated(lines) == 0
    assert count_repeated([*lines, by_source(3, film=(2, ["a"]), own=(0, ["x", "v"]))]) == 1
    assert count_repeated([by_source(1, film=(0, ["a", "b"])), by_source(2, film=(0, ["a", "c"]))]) == 1


def test_the_report_tells_samples_by_source():
    stages = [
        {"name": "train", "consumed": 4000, "sources": {"film": 3000, "web": 1000}},
        {"name": "before", "consumed": 10, "sources": {}},
    ]
    cost = {"currency": "USD", "stages": [{"name": "train", "total_micros": 80_000_001}]}
    shown = source_section({"samples": {"stages": stages}, "cost": cost})
    assert "Samples by source" in shown and "3,000" in shown and "75.0 %" in shown and "before" not in shown
    assert "60.00 USD" in shown and "20.00 USD" in shown
    assert source_section({"samples": {"stages": stages[1:]}, "cost": cost}) == ""
    not_billed = source_section({"samples": {"stages": stages}, "cost": {"currency": "USD", "stages": []}})
    assert "3,000" in not_billed and "USD" not in not_billed


def test_the_digest_is_that_of_the_documented_lines():
    lines = lines_of(["a", "b", "c", "d"], 2, 4)
    assert order_digest(lines) == hashlib.sha256(b"1 a b\n2 c d\n").hexdigest()


@pytest.fixture
def trained(synthetic):
    stage = synthetic.stage("train", "train", 6)
    synthetic.generation(stage, "Started", [0], 1, 6)
    synthetic.checkpoint(stage, 3)
    synthetic.checkpoint(stage, 6)
    return synthetic


def commit_uri(run, step=6):
    return f"{run.prefix('train')}/checkpoints/step-{step:08d}/commit.json"


def test_a_sound_checkpoint_proves_its_order(trained):
    check = check_order(trained.objects, commit_uri(trained))
    assert (check.consumed, check.repeated, check.lost, check.problems) == (24, 0, 0, [])
    expected = json.loads(trained.objects.get(commit_uri(trained)))["orderSha256"]
    assert check.order_sha256 == expected


def test_a_missing_segment_is_lost_samples_and_a_problem(trained):
    del trained.objects.objects[f"{trained.prefix('train')}/order/00000001-00000003.g000001.jsonl"]
    check = check_order(trained.objects, commit_uri(trained))
    assert (check.consumed, check.lost) == (12, 12)
    assert any("no line for 3 steps (first 1)" in problem for problem in check.problems)
    assert any("hash" in problem for problem in check.problems)


def test_a_segment_that_was_changed_is_a_problem(trained):
    uri = f"{trained.prefix('train')}/order/00000004-00000006.g000001.jsonl"
    trained.objects.objects[uri] = trained.objects.objects[uri].replace(b"train-5-0", b"train-5-9")
    check = check_order(trained.objects, commit_uri(trained))
    assert check.lost == 0
    assert [p for p in check.problems if "hash" in p]


def test_what_the_hash_of_the_order_does_not_cover_is_covered_by_the_segments_checksum(trained):
    uri = f"{trained.prefix('train')}/order/00000004-00000006.g000001.jsonl"
    trained.objects.objects[uri] = trained.objects.objects[uri].replace(b'"bucket": "64px/8f', b'"bucket": "64px/9f')
    (problem,) = check_order(trained.objects, commit_uri(trained)).problems
    assert problem.startswith(f"{uri}: CRC-32C ")


def test_lines_of_a_segment_beyond_its_use_do_not_count(trained):
    manifest = json.loads(trained.objects.get(commit_uri(trained, 3)))
    uri = manifest["order"][0]["uri"]
    extra = {"step": 4, "epoch": 0, "bucket": "b", "ids": ["train-4-0"]}
    trained.objects.objects[uri] += json.dumps(extra).encode() + b"\n"
    assert check_order(trained.objects, commit_uri(trained, 3)).consumed == 12


def test_no_checkpoint_is_an_error(trained):
    with pytest.raises(ObjectMissingError):
        check_order(trained.objects, commit_uri(trained, 5))
