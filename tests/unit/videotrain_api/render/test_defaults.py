"""A cluster's defaults for runs: what they make of a run and its pods, and which runs override what is enforced."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.planner_builders import manifest
from support.pod_templates import pod_templates

from videotrain_api.render.defaults import (
    NO_DEFAULTS,
    default_problems,
    from_registry,
    parse_defaults,
    with_defaults,
    with_pool_defaults,
)
from videotrain_api.render.pod import render_pod
from videotrain_api.resource.run_defaults import DefaultName, RunDefaults
from videotrain_api.resource.trainrun import TRAINER_IMAGE, VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.validation import parse_run

SIDECAR = {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}
ALL: Json = {
    "image": "team/trainer:2",
    "registry": "registry.example.com/mirror",
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": ["mirror"],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "env": {"HTTPS_PROXY": "http://proxy:3128", "NCCL_DEBUG": "WARN"},
    "podTemplate": {
        "metadata": {"labels": {"team": "video"}, "annotations": {"example.com/scrape": "yes"}},
        "spec": {"initContainers": [SIDECAR]},
    },
    "startDeadlineSeconds": 3600,
    "activeDeadlineSeconds": 86_400,
    "ttlSecondsAfterFinished": 0,
}
OVERRIDES: dict[str, tuple[Json, str]] = {
    "image": ({"image": "other:1"}, "spec.image"),
    "image in the template": (
        {"podTemplate": {"spec": {"containers": [{"name": "worker", "image": "other:1"}]}}},
        "spec.podTemplate.spec.containers[0].image",
    ),
    "registry": ({"image": "docker.io/other:1"}, "spec.image"),
    "registry beside ours": ({"image": "registry.example.com/mirror-of-mine/x:1"}, "spec.image"),
    "registry of a sidecar": (
        {"podTemplate": {"spec": {"initContainers": [{"name": "x", "image": "localhost/x"}]}}},
        "spec.podTemplate.spec.initContainers[0].image",
    ),
    "imagePullPolicy": ({"imagePullPolicy": "Always"}, "spec.imagePullPolicy"),
    "imagePullSecrets": ({"pool": {"imagePullSecrets": ["mine"]}}, "spec.pool.imagePullSecrets[0]"),
    "imagePullSecrets in the template": (
        {"podTemplate": {"spec": {"imagePullSecrets": [{"name": "mirror"}, {"name": "mine"}]}}},
        "spec.podTemplate.spec.imagePullSecrets[1]",
    ),
    "nodeSelector": ({"pool": {"nodeSelector": {"pool": "mine"}}}, "spec.pool.nodeSelector.pool"),
    "nodeSelector in the template": (
        {"podTemplate": {"spec": {"nodeSelector": None}}},
        "spec.podTemplate.spec.nodeSelector",
    ),
    "tolerations": ({"pool": {"tolerations": [{"operator": "Exists"}]}}, "spec.pool.tolerations[0]"),
    "tolerations in the template": (
        {"podTemplate": {"spec": {"tolerations": [{"operator": "Exists"}]}}},
        "spec.podTemplate.spec.tolerations[0]",
    ),
    "env": ({"pool": {"env": {"NCCL_DEBUG": "INFO"}}}, "spec.pool.env.NCCL_DEBUG"),
    "env in the template": (
        {"podTemplate": {"spec": {"containers": [
            {"name": "worker", "env": [{"name": "A", "value": "1"}, {"name": "NCCL_DEBUG", "valueFrom": {
                "fieldRef": {"fieldPath": "metadata.name"}}}]}]}}},
        "spec.podTemplate.spec.containers[0].env[1]",
    ),
    "podTemplate": (
        {"podTemplate": {"spec": {"initContainers": [{"name": "proxy", "image": "mine:1"}]}}},
        "spec.podTemplate.spec.initContainers[0].image",
    ),
    "podTemplate without the sidecar": (
        {"podTemplate": {"spec": {"initContainers": [{"name": "proxy", "$patch": "delete"}]}}},
        "spec.podTemplate.spec.initContainers[0].$patch",
    ),
    "podTemplate of another team": (
        {"podTemplate": {"metadata": {"labels": {"team": "other"}}}},
        "spec.podTemplate.metadata.labels.team",
    ),
    "startDeadlineSeconds": ({"startDeadlineSeconds": 3601}, "spec.startDeadlineSeconds"),
    "activeDeadlineSeconds": ({"activeDeadlineSeconds": 90_000}, "spec.activeDeadlineSeconds"),
    "ttlSecondsAfterFinished": ({"ttlSecondsAfterFinished": 1}, "spec.ttlSecondsAfterFinished"),
}  # fmt: skip
"""By the name of a default, and more: what overrides it, and the field that is told."""


def run_of(change: Json) -> VideoTrainingRun:
    body = manifest()
    pool = body["spec"]["pool"] | change.get("pool", {})
    return parse_run(body | {"spec": body["spec"] | change | {"pool": pool}})


def enforcing(*names: str, **changes: Any) -> RunDefaults:
    return parse_defaults(ALL | changes | {"enforced": list(names)})


@pytest.mark.parametrize(("case", "override"), OVERRIDES.items(), ids=OVERRIDES)
def test_an_override_is_refused_where_it_is_enforced_alone(case: str, override: tuple[Json, str]) -> None:
    name, (change, path) = case.partition(" ")[0], override
    run = run_of(change)
    others = [each for each in ALL if each not in (name, "registry", "image")]
    assert default_problems(run, enforcing()) == []
    assert [p.path for p in default_problems(run, enforcing(*others))] == []
    (problem,) = default_problems(run, enforcing(name))
    assert problem.path == path
    assert f"runDefaults.{name}" in problem.message and "allowed: " in problem.message


def test_what_agrees_or_asks_for_less_is_taken() -> None:
    run = run_of({
        "image": "team/trainer:2", "imagePullPolicy": "IfNotPresent", "startDeadlineSeconds": 60,
        "pool": {"nodeSelector": {"pool": "gpu", "zone": "a"}, "env": {"NCCL_DEBUG": "WARN", "MINE": "1"},
                 "tolerations": [{"key": "gpu", "operator": "Exists"}], "imagePullSecrets": ["mirror"]},
        "podTemplate": {"spec": {"initContainers": [SIDECAR, {"name": "mine", "image": "x/y:1"}]}},
    })  # fmt: skip
    assert default_problems(run, enforcing(*ALL)) == []
    assert default_problems(run_of({}), enforcing(*ALL)) == []


def test_every_default_reaches_a_run_that_says_nothing() -> None:
    run, defaults = run_of({}), enforcing()
    spec = with_defaults(run, defaults).spec
    assert (spec.start_deadline_seconds, spec.active_deadline_seconds) == (3600, 86_400)
    assert spec.ttl_seconds_after_finished == 0
    pod = render_pod(run, 0, "config", defaults=defaults)
    assert pod["metadata"]["labels"]["team"] == "video"
    assert pod["metadata"]["annotations"]["example.com/scrape"] == "yes"
    (worker,), (sidecar,) = pod["spec"]["containers"], pod["spec"]["initContainers"]
    assert (worker["image"], worker["imagePullPolicy"]) == (
        "registry.example.com/mirror/team/trainer:2",
        "IfNotPresent",
    )
    assert sidecar == SIDECAR | {"image": "registry.example.com/mirror/proxy:1"}
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in worker["env"]
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "mirror"}]
    assert {"key": "gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
    assert len(pod["spec"]["tolerations"]) == 3, "beside those for lost nodes"


def test_a_run_overrides_what_is_not_enforced_and_nothing_else() -> None:
    for case, (change, _) in OVERRIDES.items():
        run, name = run_of(change), case.partition(" ")[0]
        if name == "registry":
            continue  # an image from elsewhere stays what it is: it can only be refused
        own = render_pod(run, 0, "config", defaults=enforcing())
        plain = render_pod(run_of({}), 0, "config", defaults=enforcing())
        fixed = render_pod(run, 0, "config", defaults=enforcing(name))
        if name.endswith(("Seconds", "Finished")):
            assert with_defaults(run, enforcing()).spec.to_wire()[name] == change[name]
            assert with_defaults(run, enforcing(name)).spec.to_wire()[name] == ALL[name]
        else:
            assert own != plain, case
            if case != "env in the template":  # which has a variable of its own besides
                assert _shared(fixed) == _shared(plain), case


def _shared(pod: Json) -> Json:
    """A pod with its lists in one order."""
    spec = pod["spec"]
    (worker,) = spec["containers"]
    ordered = {"tolerations": sorted(map(str, spec["tolerations"]))}
    ordered["containers"] = [worker | {"env": sorted(map(str, worker["env"]))}]
    return pod | {"spec": spec | ordered}


def test_pools_and_frozen_parts_stay_what_they_were() -> None:
    """Defaults tell no two pools apart: by pools pods are told whose they are."""
    body = manifest()
    own = body["spec"]["pool"] | {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
    own.pop("currency", None)
    body["spec"]["stages"][0]["pool"] = own
    run = parse_run(body)
    pods = [render_pod(run, 0, "config", defaults=each) for each in (NO_DEFAULTS, enforcing())]
    assert pods[0]["metadata"]["labels"]["videotrain.dev/pool"] == run.spec.stages[0].name
    assert pods[0]["metadata"]["labels"].items() <= pods[1]["metadata"]["labels"].items()
    price = "videotrain.dev/price"
    assert pods[0]["metadata"]["annotations"][price] == pods[1]["metadata"]["annotations"][price]


@pytest.mark.parametrize(("image", "expected"), [
    ("a", "r.io/m/a"), ("a/b:1", "r.io/m/a/b:1"), ("r.io/m/a", "r.io/m/a"), ("q.io/a", "q.io/a"),
    ("host:5000/a", "host:5000/a"), ("localhost/a", "localhost/a"), ("a@sha256:0", "r.io/m/a@sha256:0"),
])  # fmt: skip
def test_an_image_without_a_registry_gets_one(image: str, expected: str) -> None:
    assert from_registry(image, "r.io/m") == expected
    assert from_registry(expected, "r.io/m") == expected
    assert from_registry(image, None) == image


@pytest.mark.parametrize(("data", "path"), [
    ({"imagee": "a"}, "imagee"),
    ({"startDeadlineSeconds": "60"}, "startDeadlineSeconds"),
    ({"startDeadlineSeconds": 0}, "startDeadlineSeconds"),
    ({"env": {"RANK": "1"}}, "env.RANK"),
    ({"registry": "https://r.io"}, "registry"),
    ({"registry": "r.io/"}, "registry"),
    ({"enforced": ["image"]}, "enforced[0]"),
    ({"enforced": ["ttlSecondsAfterFinished"]}, "enforced[0]"),
    ({"enforced": ["images"]}, "enforced[0]"),
    ({"podTemplate": {"spec": {"nodeName": "a"}}}, "podTemplate.spec.nodeName"),
    ({"podTemplate": {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}},
     "podTemplate.metadata.labels.app.kubernetes.io/name"),
    ({"env": {f"A{n}": "x" * 1024 for n in range(64)}}, "(root)"),
    ([], "(root)"),
])  # fmt: skip
def test_wrong_defaults_are_refused_by_field(data: Any, path: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_defaults(data)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_every_default_can_be_enforced() -> None:
    known = {info.alias or name for name, info in RunDefaults.model_fields.items()} - {"enforced"}
    assert set(DefaultName.__args__) == known == set(ALL)  # type: ignore[attr-defined]


SOME = st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in ALL.items()}).flatmap(
    lambda given: st.lists(st.sampled_from(sorted(given) or ["tolerations"]), unique=True).map(
        lambda names: given | {"enforced": names}
    )
)
LIMITS = st.none() | st.integers(1, 10**6)


@given(data=SOME, template=st.none() | pod_templates, image=st.sampled_from([None, "own:1", "q.io/own:1"]),
       start=LIMITS, ttl=LIMITS)  # fmt: skip
def test_merging_is_idempotent_and_enforced_values_always_win(
    data: Json, template: Json | None, image: str | None, start: int | None, ttl: int | None
) -> None:
    given_ = {"podTemplate": template, "image": image, "startDeadlineSeconds": start, "ttlSecondsAfterFinished": ttl}
    run, defaults = run_of({k: v for k, v in given_.items() if v is not None}), parse_defaults(data)
    merged = with_defaults(run, defaults)
    assert with_defaults(merged, defaults) == merged
    pool = with_pool_defaults(run.spec.pool, defaults)
    assert with_pool_defaults(pool, defaults) == pool
    pod = render_pod(run, 0, "config", defaults=defaults)
    assert render_pod(merged, 0, "config", defaults=defaults) == pod
    worker = next(c for c in pod["spec"]["containers"] if c["name"] == "worker")
    if "image" in defaults.enforced:
        assert worker["image"] == from_registry(ALL["image"], defaults.registry)
    elif template is None:
        assert worker["image"] == from_registry(image or data.get("image", TRAINER_IMAGE), defaults.registry)
    if "env" in defaults.enforced:
        assert all({"name": k, "value": v} in worker["env"] for k, v in ALL["env"].items())
    if "nodeSelector" in defaults.enforced:
        assert pod["spec"]["nodeSelector"].items() >= ALL["nodeSelector"].items()
    if "tolerations" in defaults.enforced:
        assert len(pod["spec"]["tolerations"]) == 2 + len(data.get("tolerations", []))
    if "podTemplate" in defaults.enforced:
        assert pod["metadata"]["labels"]["team"] == "video"
        assert any(c["name"] == "proxy" for c in pod["spec"]["initContainers"])
    for own, name, value in (
        (start, "startDeadlineSeconds", merged.spec.start_deadline_seconds),
        (ttl, "ttlSecondsAfterFinished", merged.spec.ttl_seconds_after_finished),
    ):
        default = data.get(name)
        if own is None or default is None:
            assert value == (default if own is None else own)
        else:
            assert value == (min(own, default) if name in defaults.enforced else own)
    if not default_problems(run, defaults) and "registry" in defaults.enforced:
        images = [c["image"] for kind in ("containers", "initContainers") for c in pod["spec"].get(kind) or []]
        assert all(one.startswith("registry.example.com/mirror/") for one in images)


@given(data=SOME, holding=SOME)
def test_what_a_run_holds_is_all_that_it_holds(data: Json, holding: Json) -> None:
    present, held = parse_defaults(data), parse_defaults(holding).held()
    both = present.holding(held)
    assert both.held() == held
    assert both.model_copy(update={"enforced": []}).holding(None) == present.model_copy(
        update={"enforced": []}
    ).holding(None)
    assert present.holding(present.held()).to_wire() | {"enforced": []} == present.to_wire() | {"enforced": []}
    assert set(present.holding(present.held()).enforced) == set(present.enforced)
