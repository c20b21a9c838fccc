"""The roles are those that docs/reference/permissions.md lists, at the places that it says."""

from __future__ import annotations

import pytest
from support.chart import EVERYTHING, NAMESPACE, NAMESPACED, RELEASE, Chart, Json, of_kind, one, rules_of, table

FULL = f"{RELEASE}.{NAMESPACE}"
ENFORCED = {"rbac": {"ownerReferencesPermissionEnforcement": True}}


RUNS = table("namespaces of runs", but="rbac.ownerReferencesPermissionEnforcement")


@pytest.mark.parametrize("values", [{}, ENFORCED], ids=["default", "enforced"])
def test_cluster_wide(chart: Chart, values: Json) -> None:
    objects = chart.render(values)
    runs = table("namespaces of runs") if values else RUNS
    assert rules_of(one(objects, "ClusterRole", FULL)) == table("cluster") | runs
    role = one(objects, "Role")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert rules_of(role) == table("namespace of the release")


def test_namespaced(chart: Chart) -> None:
    objects = chart.render(NAMESPACED)
    assert rules_of(one(objects, "ClusterRole", FULL)) == table("cluster")
    roles = {role["metadata"]["namespace"]: rules_of(role) for role in of_kind(objects, "Role")}
    assert roles == {NAMESPACE: table("namespace of the release"), "team-a": RUNS, "team-b": RUNS}


def test_the_release_s_namespace_may_be_one_of_the_runs(chart: Chart) -> None:
    objects = chart.render({"namespaces": [NAMESPACE]})
    roles = [rules_of(role) for role in of_kind(objects, "Role")]
    assert len(roles) == 2
    assert set.union(*roles) == RUNS | table("namespace of the release")


def test_without_the_webhook_there_are_no_rights_for_it(chart: Chart) -> None:
    objects = chart.render({"webhook": {"enabled": False}})
    granted = set.union(*(rules_of(role) for role in of_kind(objects, "Role") + of_kind(objects, "ClusterRole")))
    assert "validatingwebhookconfigurations" not in {resource for _, resource, _, _ in granted}
    own = f"{RELEASE}-key"
    assert {rule for rule in granted if rule[1] == "secrets"} == {
        ("", "secrets", "create", ""),
        ("", "secrets", "get", own),
        ("", "secrets", "update", own),
    }


def test_without_network_policies_there_are_no_rights_for_them(chart: Chart) -> None:
    for values in ({}, NAMESPACED):
        for enabled in (True, False):
            objects = chart.render(values | {"networkPolicy": {"enabled": enabled}})
            granted = set.union(
                *(rules_of(role) for role in of_kind(objects, "Role") + of_kind(objects, "ClusterRole"))
            )
            verbs = {verb for _, resource, verb, _ in granted if resource == "networkpolicies"}
            assert verbs == ({"get", "list", "watch", "create", "patch"} if enabled else set())


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING | NAMESPACED], ids=["cluster", "namespaced"])
def test_each_role_is_bound_to_the_operator_and_nobody_else(chart: Chart, values: Json) -> None:
    objects = chart.render(values)
    account = one(objects, "ServiceAccount")["metadata"]
    for kind in ("Role", "ClusterRole"):
        roles = [r for r in of_kind(objects, kind) if not r["metadata"]["name"].endswith((".view", ".edit"))]
        bindings = of_kind(objects, f"{kind}Binding")
        place = [(r["metadata"].get("namespace"), r["metadata"]["name"]) for r in roles]
        assert place == [(b["metadata"].get("namespace"), b["roleRef"]["name"]) for b in bindings]
        for binding in bindings:
            (subject,) = binding["subjects"]
            assert subject == {
                "kind": "ServiceAccount",
                "name": account["name"],
                "namespace": account["namespace"],
            }


def test_no_rule_is_wider_than_it_looks(chart: Chart) -> None:
    for role in of_kind(chart.render(EVERYTHING), "Role") + of_kind(chart.render(EVERYTHING), "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
