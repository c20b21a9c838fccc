"""What the chart makes of values."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.chart import (
    CHART,
    EVERYTHING,
    NAMESPACE,
    NAMESPACED,
    NOTHING,
    RELEASE,
    ROOT,
    Chart,
    Json,
    boards_of,
    container,
    names,
    of_kind,
    one,
)

from videotrain_api.resource.bill_storage import BillStorage
from videotrain_api.vocabulary import LABEL_RUN, PORT_AGENT
from videotrain_operator.manager.settings import Settings

CASES = {"defaults": {}, "everything": EVERYTHING, "namespaced": EVERYTHING | NAMESPACED, "nothing": NOTHING}
MONITORS = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_object_is_valid(chart: Chart, values: Json) -> None:
    objects = chart.render(values)
    assert len(names(objects)) == len(objects), "two objects of one name"
    for item in objects:
        if item["kind"] not in (*MONITORS, "PrometheusRule", "GrafanaDashboard"):
            kubernetes_validate.validate(item, "1.37", strict=True)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_lint_has_nothing_to_say(chart: Chart, values: Json) -> None:
    done = chart.run("lint", str(CHART), "--strict", values=values)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_object_says_whose_it_is(chart: Chart, values: Json) -> None:
    for item in chart.render(values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "videotrain"
        assert labels.get("team") == values.get("commonLabels", {}).get("team")


def test_the_crd_is_the_generated_one(chart: Chart) -> None:
    objects = chart.render()
    for path in (ROOT / "manifests" / "crds").glob("*.yaml"):
        crd = one(objects, "CustomResourceDefinition", path.stem)
        assert crd["spec"] == yaml.safe_load(path.read_text())["spec"]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_crd_goes_with_the_release_if_asked(chart: Chart) -> None:
    crds = of_kind(chart.render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert crds
    assert not any(crd["metadata"]["annotations"] for crd in crds)


def test_installing_and_upgrading_run_no_hooks(chart: Chart) -> None:
    for item in chart.hooks(EVERYTHING):
        assert item["metadata"]["annotations"]["helm.sh/hook"] == "test"
        kubernetes_validate.validate(item, "1.37", strict=True)


SWITCHES = {
    "podDisruptionBudget.enabled": {"PodDisruptionBudget"},
    "serviceAccount.create": {"ServiceAccount"},
    "rbac.create": {"ClusterRoleBinding", "Role", "RoleBinding", "ClusterRole"},
    "rbac.aggregate": {"ClusterRole"},
    "crds.install": {"CustomResourceDefinition"},
    "webhook.enabled": {"ValidatingWebhookConfiguration", "Secret", "Service"},
    "networkPolicy.enabled": {"NetworkPolicy"},
    "monitoring.serviceMonitor.enabled": {"ServiceMonitor"},
    "monitoring.podMonitor.enabled": {"PodMonitor"},
    "monitoring.dashboards.enabled": {"ConfigMap"},
    "monitoring.dashboards.grafanaOperator.enabled": {"GrafanaDashboard"},
    "monitoring.alerts.enabled": {"PrometheusRule"},
}


def setting(path: str, value: object) -> Json:
    """`a.b` as nested values."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", SWITCHES)
def test_a_switch_takes_exactly_its_objects(chart: Chart, path: str) -> None:
    on, off = (names(chart.render(setting(path, value))) for value in (True, False))
    assert off < on
    assert {kind for kind, _, _ in on - off} == SWITCHES[path]


def test_the_boards_are_handed_to_grafana_s_sidecar(chart: Chart) -> None:
    values = {"enabled": True, "annotations": {"grafana_folder": "video"}}
    boards = boards_of(chart.render({"monitoring": {"dashboards": values}}))
    files = {name: text for board in boards for name, text in board["data"].items()}
    assert files == {path.name: path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}
    for board in boards:
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert board["metadata"]["annotations"] == {"grafana_folder": "video"}


def test_the_grafana_operator_gets_the_same_boards(chart: Chart) -> None:
    values = {"enabled": True, "grafanaOperator": {"enabled": True, "instanceSelector": {"grafana": "main"}}}
    objects = chart.render({"monitoring": {"dashboards": values}})
    boards = of_kind(objects, "GrafanaDashboard")
    texts = [text for board in boards_of(objects) for text in board["data"].values()]
    assert [board["spec"]["json"] for board in boards] == texts
    assert {board["spec"]["instanceSelector"]["matchLabels"]["grafana"] for board in boards} == {"main"}


@pytest.mark.parametrize(("suffix", "index"), [(".md", "README.md"), ("/", ""), (".html", "")])
def test_alerts_and_boards_link_to_where_the_runbook_is_served(chart: Chart, suffix: str, index: str) -> None:
    values: dict[str, Any] = {"runbooks": "https://wiki.example/ops", "runbookSuffix": suffix}
    values |= {"alerts": {"enabled": True}, "dashboards": {"enabled": True}}
    objects = chart.render({"monitoring": values})
    (rules,) = of_kind(objects, "PrometheusRule")
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example/ops/{alert['alert']}{suffix}"
    boards = [text for board in boards_of(objects) for text in board["data"].values()]
    assert all(f'"https://wiki.example/ops/{index}"' in text and "docs/runbook" not in text for text in boards)
    assert any(f"/ops/${{__field.labels.alertname}}{suffix}" in text for text in boards)


def test_what_is_left_with_everything_off(chart: Chart) -> None:
    assert {kind for kind, _, _ in names(chart.render(NOTHING))} == {
        "ConfigMap",
        "Deployment",
        "Lease",
        "Secret",
        "Service",
    }


def test_flags_are_those_of_the_operator(chart: Chart) -> None:
    values = {
        "namespaces": ["team-a", "team-b"],
        "monitoring": {"authorization": False},
        "operator": {
            "logFormat": "text",
            "logLevel": "debug",
            "leaseSeconds": 7,
            "concurrentPasses": 9,
            "resyncSeconds": 60,
            "nodeTrust": {"maxLostPercent": 33},
            "otlpEndpoint": "http://collector.monitoring:4318",
        },
    }
    objects = chart.render(values)
    settings = Settings.load(container(objects)["args"], {})
    assert settings == Settings(
        network_policy=settings.network_policy,
        namespaces=("team-a", "team-b"),
        run_defaults=one(objects, "ConfigMap")["metadata"]["name"],
        lease_name=one(objects, "Lease")["metadata"]["name"],
        lease_seconds=7,
        http_port=8080,
        webhook_port=9443,
        webhook_service=one(objects, "Service", f"{RELEASE}-webhook")["metadata"]["name"],
        webhook_secret=one(objects, "Secret", f"{RELEASE}-webhook")["metadata"]["name"],
        key_secret=one(objects, "Secret", f"{RELEASE}-key")["metadata"]["name"],
        webhook_configuration=one(objects, "ValidatingWebhookConfiguration")["metadata"]["name"],
        concurrent_passes=9,
        resync_seconds=60,
        node_trust_max_lost_percent=33,
        otlp_endpoint="http://collector.monitoring:4318",
        log_format="text",
        log_level="debug",
    )


def test_bills_have_a_place_and_credentials(chart: Chart) -> None:
    objects = chart.render({"bills": {"uri": "s3://finance/bills", "credentialsSecret": "keys"}})
    place = Settings.load(container(objects)["args"], {}).bill_place()
    assert place == BillStorage(uri="s3://finance/bills")
    given = {item["name"]: item["valueFrom"] for item in container(objects)["env"] if item["name"].startswith("AWS")}
    assert given == {
        name: {"secretKeyRef": {"name": "keys", "key": name}} for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }
    full = Settings.load(container(chart.render(EVERYTHING))["args"], {}).bill_place()
    assert full == BillStorage(
        uri="s3://finance/videotrain", endpoint_url="http://minio.storage:9000", region="eu-central-1"
    )


def test_the_authority_of_the_api_server_s_certificate_is_mounted_where_the_flag_says(chart: Chart) -> None:
    values = {"clientCAConfigMap": "api-server-ca", "clientNames": ["kube-apiserver", "front proxy"]}
    objects = chart.render({"webhook": values})
    settings = Settings.load(container(objects)["args"], {})
    assert settings.webhook_client_names == ("kube-apiserver", "front proxy")
    folder, _, name = settings.webhook_client_ca.rpartition("/")
    (mount,) = [mount for mount in container(objects)["volumeMounts"] if mount["mountPath"] == folder]
    volumes = one(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (volume,) = [volume for volume in volumes if volume["name"] == mount["name"]]
    assert volume["configMap"] == {"name": "api-server-ca"} and name == "ca.crt"


def test_default_flags_are_the_operator_s_defaults(chart: Chart) -> None:
    off = {"webhook": {"enabled": False}, "networkPolicy": {"enabled": False}}
    settings = Settings.load(container(chart.render(off))["args"], {})
    # By hand there is often no right to ask who is who, and nobody else on the address.
    assert settings == Settings(
        lease_name=RELEASE,
        key_secret=f"{RELEASE}-key",
        run_defaults=f"{RELEASE}-run-defaults",
        metrics_authorization=True,
    )


def test_pods_may_do_nothing_on_their_nodes(chart: Chart) -> None:
    objects = chart.render()
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_two_replicas_on_different_nodes_end_in_good_order(chart: Chart) -> None:
    deployment = one(chart.render(), "Deployment")["spec"]
    spec = deployment["template"]["spec"]
    assert deployment["replicas"] == 2
    assert spec["terminationGracePeriodSeconds"] == 30
    labels = deployment["template"]["metadata"]["labels"]
    (preferred,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (spread,) = spec["topologySpreadConstraints"]
    for term in (preferred["podAffinityTerm"], spread):
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_selectors_meet_the_operator_s_pods_and_nothing_of_a_run(chart: Chart) -> None:
    objects = chart.render()
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert LABEL_RUN not in labels
    for item in [*of_kind(objects, "Service"), one(objects, "PodDisruptionBudget")]:
        selector = item["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert wanted.items() <= labels.items()
        # Workers carry app.kubernetes.io/name as well.
        assert wanted["app.kubernetes.io/component"] == "operator"


def test_ports_lead_to_ports_of_the_container(chart: Chart) -> None:
    objects = chart.render()
    known = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    assert known == {"http": 8080, "webhook": 9443}
    for service in of_kind(objects, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= known.keys()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container(objects)[probe]["httpGet"]["port"] == "http"


def test_the_webhook_leaves_status_and_other_namespaces_alone(chart: Chart) -> None:
    (hook,) = one(chart.render(NAMESPACED), "ValidatingWebhookConfiguration")["webhooks"]
    assert [rule["resources"] for rule in hook["rules"]] == [["videotrainingruns"]]
    (expression,) = hook["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == NAMESPACED["namespaces"]
    assert hook["failurePolicy"] == "Ignore"


def test_what_the_operator_writes_is_not_in_the_chart(chart: Chart) -> None:
    # Otherwise each upgrade would take away certificates and leadership.
    objects = chart.render()
    (hook,) = one(objects, "ValidatingWebhookConfiguration")["webhooks"]
    assert "caBundle" not in hook["clientConfig"]
    secrets = of_kind(objects, "Secret")
    assert len(secrets) == 2
    assert not any({"data", "stringData"} & secret.keys() for secret in secrets)
    assert "spec" not in one(objects, "Lease")


def test_the_operator_reaches_the_api_server_names_and_agents_only(chart: Chart) -> None:
    policy = one(chart.render({"networkPolicy": {"apiServerPorts": [16443]}}), "NetworkPolicy")["spec"]
    reached = [{port["port"] for port in rule["ports"]} for rule in policy["egress"]]
    assert reached == [{53}, {16443}, {PORT_AGENT}]
    admitted = [{port["port"] for port in rule["ports"]} for rule in policy["ingress"]]
    assert admitted == [{8080}, {9443}]


def test_the_webhook_is_open_to_everybody_or_to_the_addresses_that_are_named(chart: Chart) -> None:
    cidrs = ["10.0.0.0/28", "fd00::1/128"]
    for named, admitted in (([], {}), (cidrs, {"from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]})):
        values = {"networkPolicy": {"apiServerCIDRs": named}}
        _, webhook = one(chart.render(values), "NetworkPolicy")["spec"]["ingress"]
        assert webhook == {"ports": [{"protocol": "TCP", "port": 9443}]} | admitted


@pytest.mark.parametrize("kind", MONITORS)
def test_monitors_scrape_named_ports_and_keep_our_labels(chart: Chart, kind: str) -> None:
    objects = chart.render(EVERYTHING)
    (endpoint,) = one(objects, kind)["spec"][MONITORS[kind]]
    assert endpoint["path"] == "/metrics"
    assert endpoint["honorLabels"] is True
    assert "jobLabel" not in one(objects, kind)["spec"]
    assert endpoint["port"] == {"ServiceMonitor": "http", "PodMonitor": "agent"}[kind]


def test_the_service_monitor_selects_the_metrics_service_only(chart: Chart) -> None:
    objects = chart.render(EVERYTHING)
    wanted = one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    met = [s["metadata"]["name"] for s in of_kind(objects, "Service") if wanted <= s["metadata"]["labels"].items()]
    assert met == [RELEASE]


def test_releases_of_one_name_in_two_namespaces_share_nothing(chart: Chart) -> None:
    values = {"crds": {"install": False}}
    first, second = (names(chart.render(values, "--namespace", name)) for name in ("a", "b"))
    assert not first & second


def test_notes_tell_what_to_do_next(chart: Chart) -> None:
    done = chart.run("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=NAMESPACED)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.rpartition("NOTES:")[2]
    for command in ("rollout status deployment/videotrain", "apply -f", "get vtr -w"):
        assert command in notes
    assert "team-a, team-b" in notes
