"""What pod templates may make of worker pods, under each policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.planner_builders import manifest
from support.pod_breaches import ALLOWED, BASELINE, OURS, RESTRICTED_ONLY
from support.pod_templates import pod_templates

from videotrain_api.render.pod_policy import pod_problems
from videotrain_api.schema import ManifestError, Problem
from videotrain_api.validation import parse_run

EXAMPLES = sorted((Path(__file__).parents[4] / "manifests/examples").glob("*.yaml"))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "ALL", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "add", "name", "x"]), inner),
    max_leaves=6,
)


def problems(policy: Any, spec: Any, **more: Any) -> list[Problem]:
    return pod_problems(parse_run(manifest(podTemplate={"spec": spec}, **more)), policy)


@pytest.mark.parametrize(("spec", "path"), (BASELINE | OURS).values(), ids=BASELINE | OURS)
def test_what_baseline_refuses_needs_any(spec: Any, path: str) -> None:
    for policy in ("baseline", "restricted"):
        (found,) = [problem for problem in problems(policy, spec) if problem.path == path]
        assert f"podTemplate.policy {policy}" in found.message and "podTemplate.policy: any" in found.message
    assert problems("any", spec) == []


@pytest.mark.parametrize(("spec", "path"), RESTRICTED_ONLY.values(), ids=RESTRICTED_ONLY)
def test_what_only_restricted_refuses_needs_baseline(spec: Any, path: str) -> None:
    (found,) = [problem for problem in problems("restricted", spec) if problem.path == path]
    assert "podTemplate.policy: baseline" in found.message
    assert problems("baseline", spec) == []


@pytest.mark.parametrize("spec", ALLOWED.values(), ids=ALLOWED)
def test_what_no_standard_refuses_is_taken(spec: Any) -> None:
    assert problems("restricted", spec) == []


def test_a_refusal_says_field_value_what_is_allowed_and_where_to_change_it() -> None:
    (found,) = problems("restricted", {"hostNetwork": True})
    assert str(found) == (
        "spec.podTemplate.spec.hostNetwork: True: allowed under podTemplate.policy restricted: unset or false; "
        "who installed the operator can allow it by the chart's value podTemplate.policy: any"
    )


def test_items_are_named_by_their_place_in_the_template() -> None:
    side = {"name": "side", "image": "i", "securityContext": {"privileged": True}}
    found = problems("baseline", {"containers": [{"name": "worker", "tty": True}, side]})
    assert [problem.path for problem in found] == ["spec.podTemplate.spec.containers[1].securityContext.privileged"]


def test_a_system_class_of_the_pool_is_refused_there() -> None:
    pool = {"gpusPerNode": 2, "pricePerGpuHour": "3.60", "priorityClassName": "system-cluster-critical"}
    (found,) = pod_problems(parse_run(manifest(pool=pool)), "baseline")
    assert found.path == "spec.pool.priorityClassName" and found.value == "system-cluster-critical"
    pool |= {"priorityClassName": "research", "serviceAccountName": "reader"}
    assert pod_problems(parse_run(manifest(pool=pool)), "restricted") == []


def test_an_annotation_of_apparmor_counts() -> None:
    key = "container.apparmor.security.beta.kubernetes.io/worker"
    for value, refused in (("unconfined", True), ("runtime/default", False), ("localhost/a", False)):
        run = parse_run(manifest(podTemplate={"metadata": {"annotations": {key: value}}}))
        assert [p.path for p in pod_problems(run, "baseline")] == (
            [f"spec.podTemplate.metadata.annotations.{key}"] if refused else []
        )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_keeps_to_the_default(path: Path) -> None:
    run = parse_run(next(d for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "VideoTrainingRun"))
    assert pod_problems(run, "restricted") == []


@given(pod_templates)
def test_ordinary_templates_keep_to_the_default(template: Any) -> None:
    assert pod_problems(parse_run(manifest(podTemplate=template)), "restricted") == []


FIELDS = ("seccompProfile", "capabilities", "seLinuxOptions", "windowsOptions", "appArmorProfile", "runAsUser",
          "runAsNonRoot", "privileged", "procMount", "sysctls")  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
    ANYTHING,
    ANYTHING,
)
def test_nothing_that_a_template_holds_trips_the_check(pod: Any, worker: Any, probe: Any, source: Any) -> None:
    spec = {
        "securityContext": pod,
        "containers": [{"name": "worker", "securityContext": worker, "lifecycle": probe}],
        "volumes": [{"name": "more", "projected": source}],
    }
    try:
        run = parse_run(manifest(podTemplate={"spec": spec}))
    except ManifestError:
        return
    for policy in ("restricted", "baseline", "any"):
        assert all(problem.path.startswith("spec.") for problem in pod_problems(run, policy))  # type: ignore[arg-type]
