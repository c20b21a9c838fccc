"""Names on the wire, round trips and the words of refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from videotrain_api.generate.reference import reachable_models
from videotrain_api.records import GenerationProgress, SavedPoint
from videotrain_api.resource.pool import PodTemplate, PodTemplateMetadata, Pool, RunPool, Toleration
from videotrain_api.resource.stages import (
    Bucket,
    ConditioningMix,
    LearningRatePiece,
    NodeBounds,
    Optimizer,
    ParallelLayout,
    Stage,
    TrainTask,
)
from videotrain_api.resource.status import CostStatus, RunStatus
from videotrain_api.resource.trainrun import (
    Budget,
    Dataset,
    FailurePolicy,
    FailureRule,
    Metadata,
    Storage,
    VideoTrainingRun,
    VideoTrainingRunSpec,
)
from videotrain_api.schema import ApiModel, ManifestError, camel_case
from videotrain_api.validation import parse_run

numbers = st.integers(1, 500)
shares = st.floats(0.01, 1, allow_nan=False)
names = st.from_regex(r"\A[a-z][a-z0-9]{0,12}\Z")
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)
lines = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)
money = st.from_regex(r"\A[0-9]{1,5}\.[0-9]{2}\Z")


def built(model: type[ApiModel], **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Not st.builds: it would add the wire names of required fields on its own."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


buckets = built(
    Bucket,
    resolution=st.sampled_from(["64px", "256px"]),
    frames=st.sampled_from([1, 8, 32]),
    min_frames=maybe(st.just(4)),
    batch_size=numbers,
    keep_probability=shares,
    aspect_ratios=maybe(st.just(["1:1", "16:9"])),
)
trains = built(
    TrainTask,
    steps=numbers,
    buckets=st.lists(buckets, min_size=1, max_size=3),
    optimizer=built(Optimizer, learning_rate=st.lists(built(LearningRatePiece, value=shares), min_size=1, max_size=2)),
    conditioning=built(ConditioningMix, t2v=shares, i2v_head=shares),
    parallel=built(ParallelLayout, micro_batches_per_step=numbers, zero_stage=st.sampled_from([0, 1, 2, 3])),
    ema_decay=maybe(st.floats(0.1, 0.9)),
)
stages = built(
    Stage,
    name=names,
    task=st.just("train"),
    train=trains,
    nodes=maybe(built(NodeBounds, max=numbers)),
    pool=maybe(built(Pool, gpus_per_node=st.integers(0, 8), price_per_node_hour=maybe(money))),
)
specs = built(
    VideoTrainingRunSpec,
    autoencoder=st.just({"preset": "dc-ae-tiny"}),
    dataset=built(Dataset, latents=maybe(lines), captions=st.dictionaries(words, words, max_size=2)),
    storage=st.just(Storage(uri="s3://bucket/prefix")),
    stages=st.lists(stages, min_size=1, max_size=2),
    pool=built(
        RunPool,
        gpus_per_node=st.integers(1, 8),
        price_per_gpu_hour=money,
        tolerations=st.lists(built(Toleration, key=maybe(words)), max_size=2),
        env=st.dictionaries(names, words, max_size=2),
    ),
    budget=maybe(built(Budget, max_cost=maybe(money))),
    failure_policy=built(FailurePolicy, rules=st.lists(built(FailureRule, action=st.just("Fail")), max_size=1)),
    seed=st.integers(0, 2**63 - 1),
    suspend=st.booleans(),
    pod_template=maybe(
        st.just(PodTemplate(metadata=PodTemplateMetadata(labels={"a": "b"}), spec={"priority": None, "x": [{"y": 1}]}))
    ),
)
runs = built(VideoTrainingRun, metadata=built(Metadata, name=names, labels=st.dictionaries(names, names)), spec=specs)


@settings(max_examples=60)
@given(runs)
def test_a_run_survives_the_wire(run: VideoTrainingRun):
    wire = run.to_wire()
    again = VideoTrainingRun.from_wire(json.loads(json.dumps(wire)))
    assert again == run and again.to_wire() == wire


def test_a_status_survives_the_wire():
    now = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
    point = SavedPoint(step=5, captured_at=now, committed_at=now, uri="s3://b/c", data_stall_us=1, checkpoint_us=2)
    progress = GenerationProgress(generation=2, stage="s", state="running", launched_at=now, saved=[point])
    cost = CostStatus(currency="EUR", total_micros=2**60, gpu_microseconds_by_bucket={"productive": 2**60})
    status = RunStatus(cost=cost, start_time=now)
    assert RunStatus.from_wire(json.loads(json.dumps(status.to_wire()))) == status
    assert GenerationProgress.from_wire(json.loads(json.dumps(progress.to_wire()))) == progress


@pytest.mark.parametrize(
    ("python", "wire"),
    [("i2v_head", "i2vHead"), ("t2v", "t2v"), ("price_per_gpu_hour", "pricePerGpuHour"), ("crc32c", "crc32c")],
)
def test_names_on_the_wire(python, wire):
    assert camel_case(python) == wire


def test_unset_fields_are_left_out_and_no_optional_field_has_another_default():
    """Otherwise an explicit null would come back as the default."""
    for model in (*reachable_models(VideoTrainingRun), *reachable_models(RunStatus)):
        for name, field in model.model_fields.items():
            if type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, f"{model.__name__}.{name}"


def test_a_kept_unknown_field_of_the_metadata_survives(manifest):
    manifest["metadata"]["resourceVersion"] = "17"
    assert parse_run(manifest).to_wire()["metadata"]["resourceVersion"] == "17"


def test_many_problems_are_one_message_with_a_line_each(manifest):
    manifest["spec"]["nodes"] = {"min": 0, "max": "2", "more": 1}
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems) == 3
    assert lines[0].startswith("spec.nodes.min: 0: ")


def test_a_long_value_is_cut_in_the_message(manifest):
    manifest["spec"]["pool"]["currency"] = "x" * 500
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    assert len(str(caught.value)) < 300


class _Pair(ApiModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _in_order(self) -> _Pair:
        if self.low > self.high:
            raise ValueError("low is at most high")
        return self


def test_a_rule_of_a_whole_document_is_told_at_its_root():
    with pytest.raises(ManifestError) as refused:
        _Pair.from_wire({"low": 2, "high": 1})
    (problem,) = refused.value.problems
    assert problem.path == "(root)" and "low is at most high" in problem.message
