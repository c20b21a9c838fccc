"""TrainingBudgets as people write them: what they cover, their defaults, and refusals that name field and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from videotrain_api.crd.cel_rules import BUDGET_RULES
from videotrain_api.crd.definition import BUDGET_COLUMNS, budget_definition, budget_schema
from videotrain_api.generate.reference import reachable_models
from videotrain_api.resource.training_budgets import TrainingBudget, TrainingBudgetSpec
from videotrain_api.schema import ManifestError

ROOT = Path(__file__).parents[4]


def budget(**spec: Any) -> TrainingBudget:
    body = {"apiVersion": "videotrain.dev/v1alpha1", "kind": "TrainingBudget", "metadata": {"name": "b"}}
    return TrainingBudget.from_wire(body | {"spec": {"amount": "10"} | spec})


@pytest.mark.parametrize(
    ("spec", "covered"),
    [
        ({}, {"a/x", "a/y", "b/x", "b/"}),
        ({"team": "x"}, {"a/x", "b/x"}),
        ({"namespaces": ["a"]}, {"a/x", "a/y"}),
        ({"namespaces": ["a"], "team": "x"}, {"a/x"}),
    ],
)
def test_it_covers_a_team_or_namespaces_or_both_or_all(spec: dict[str, Any], covered: set[str]) -> None:
    runs = ("a/x", "a/y", "b/x", "b/")
    assert {run for run in runs if budget(**spec).covers(*run.split("/"))} == covered


def test_by_default_it_tells_and_then_saves_and_suspends() -> None:
    assert [(rule.at_percent, rule.action) for rule in budget().spec.rules] == [
        (80, "Notify"),
        (100, "CheckpointAndSuspend"),
    ]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"amount": "-5"}, "spec.amount: '-5': allowed: a decimal string of 0 or more"),
        ({"amount": 5}, "spec.amount: 5: "),
        ({"currency": "usd"}, "spec.currency: 'usd': allowed: an ISO 4217 code"),
        ({"team": ""}, "spec.team: '': "),
        ({"teams": "x"}, "spec.teams: 'x': unknown field; did you mean 'team'?"),
        ({"rules": [{"atPercent": 101, "action": "Notify"}]}, "spec.rules[0].atPercent: 101: "),
        ({"rules": [{"atPercent": 80, "action": "Stop"}]}, "spec.rules[0].action: 'Stop': "),
    ],
)
def test_refusals_name_field_and_value(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError) as refused:
        budget(**spec)
    assert str(refused.value).startswith(told)


def test_the_crd_is_a_valid_kubernetes_object_whose_columns_and_rules_point_at_fields() -> None:
    definition = budget_definition()
    assert kubernetes_validate.validate(definition, "1.37", strict=True)
    assert definition["spec"]["scope"] == "Cluster"
    schema = budget_schema()
    for _, kind, path, _, _ in BUDGET_COLUMNS[:6]:
        place = schema
        for name in path.strip(".").split("."):
            place = place["properties"][name]
        assert place["type"] == kind
    rule = schema["properties"]["spec"]["properties"]["rules"]["items"]
    assert [each["rule"] for each in rule["x-kubernetes-validations"]] == [
        each.rule for rules in BUDGET_RULES.values() for each in rules
    ]


def test_every_field_is_documented() -> None:
    for model in reachable_models(TrainingBudgetSpec):
        assert all(field.description for field in model.model_fields.values()), model


@pytest.mark.parametrize("path", sorted((ROOT / "manifests/examples/budgets").glob("*.yaml")), ids=lambda p: p.name)
def test_the_example_is_valid(path: Path) -> None:
    assert TrainingBudget.from_wire(yaml.safe_load(path.read_text())).spec.rules
