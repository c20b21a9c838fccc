"""Every field of a run is on exactly one of the lists that say when it may change."""

import pytest

from videotrain_api.resource import mutability
from videotrain_api.resource.pool import Pool, RunPool
from videotrain_api.resource.stages import TASKS, Stage
from videotrain_api.resource.trainrun import FailurePolicy, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import camel_case


def wire_names(kind):
    return sorted(camel_case(name) for name in kind.model_fields)


def test_every_field_of_spec_is_on_one_list():
    lists = [*mutability.LIVE, *mutability.WHILE_NO_PODS, *mutability.FROZEN_ANEW, *mutability.FIXED]
    # Of these two parts may change and parts not; podTemplate is fixed, but CEL cannot look into it.
    assert sorted([*lists, "failurePolicy", "stages", "podTemplate"]) == wire_names(VideoTrainingRunSpec)


def test_every_field_of_the_failure_policy_is_on_one_list():
    lists = [*mutability.LIVE_FAILURE_POLICY, *mutability.FIXED_FAILURE_POLICY]
    assert sorted(lists) == wire_names(FailurePolicy)


def test_of_a_stage_nodes_may_change_and_parts_of_its_pool():
    assert sorted(["name", "task", "nodes", "pool", *TASKS]) == wire_names(Stage)


def test_the_fixed_fields_of_the_pool_are_fields_of_it():
    assert set(mutability.FIXED_POOL) < set(wire_names(Pool))
    names = ("gpus_per_node", "gpu_resource")
    assert mutability.attributes(RunPool, mutability.FIXED_POOL) == names
    assert set(wire_names(RunPool)) - set(wire_names(Pool)) == {"currency"}


@pytest.fixture
def spec(manifest):
    return VideoTrainingRun.from_wire(manifest).spec.model_dump(mode="json", by_alias=True)


def test_without_live_leaves_what_decides_what_is_trained(spec):
    rest = mutability.without_live(spec)
    assert sorted(rest) == sorted({*spec} - {*mutability.LIVE})
    assert sorted(rest["failurePolicy"]) == sorted(mutability.FIXED_FAILURE_POLICY)
    assert [stage.keys() for stage in rest["stages"]] == [stage.keys() - {"nodes"} for stage in spec["stages"]]
    assert "nodes" in spec["stages"][0], "the argument stays as it was"
