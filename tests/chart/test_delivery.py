"""How the chart reaches a cluster: packaged, by kustomize, by Argo CD and Flux, with cert-manager, and tested there."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from support.chart import CHART, NAMESPACE, RELEASE, ROOT, Chart, Json, container, kustomized, of_kind, one

from videotrain.controlplane.tools import kubectl as kubectl_program
from videotrain_api.generate.chart_values import values_schema
from videotrain_api.render.defaults import parse_defaults
from videotrain_operator.manager.ask_webhook import WEBHOOK, WRONG
from videotrain_operator.manager.settings import Settings
from videotrain_operator.webhook.review import review_request

KUSTOMIZE = ROOT / "manifests" / "kustomize"


def documents(path: Path) -> list[Json]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def test_kubectl_builds_the_kustomize_base(chart: Chart) -> None:
    built = subprocess.run(
        [str(kubectl_program()), "kustomize", str(KUSTOMIZE)], capture_output=True, text=True, check=False, timeout=120
    )
    assert built.returncode == 0, built.stderr
    objects = [each for each in yaml.safe_load_all(built.stdout) if each]
    crds = sorted(path.stem for path in (ROOT / "manifests" / "crds").glob("*.yaml"))
    assert sorted(each["metadata"]["name"] for each in of_kind(objects, "CustomResourceDefinition")) == crds
    rest = [(each["kind"], each["metadata"]["name"]) for each in objects if each["kind"] not in (
        "CustomResourceDefinition", "Namespace")]  # fmt: skip
    assert sorted(rest) == sorted((each["kind"], each["metadata"]["name"]) for each in kustomized(chart))
    assert Settings.load(container(objects)["args"], {}).run_defaults == "videotrain-run-defaults"


def test_a_package_holds_the_whole_chart(chart: Chart, tmp_path: Path) -> None:
    folders = {f"HELM_{kind}_HOME": str(chart.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    done = subprocess.run(
        [str(chart.helm), "package", str(CHART), "--destination", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120, env=os.environ | folders,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("videotrain-*.tgz")
    with tarfile.open(package) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    there = {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()}
    assert held == there - {".helmignore"} | ({".helmignore"} & held)
    # What a registry hands out is what the folder renders.
    from_package = chart.run("template", RELEASE, str(package), "--namespace", NAMESPACE)
    assert from_package.stdout == chart.template().stdout


def test_the_chart_tells_who_keeps_it_and_how_it_looks() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert all(each["name"] for each in about["maintainers"])
    assert about["icon"].startswith("data:image/svg+xml;base64,")


def test_cert_manager_makes_the_certificate_if_asked(chart: Chart) -> None:
    manager = {"enabled": True}
    objects = chart.render({"webhook": {"certManager": manager}})
    certificate = one(objects, "Certificate")
    settings = Settings.load(container(objects)["args"], {})
    assert certificate["spec"]["secretName"] == settings.webhook_secret == f"{RELEASE}-webhook-cert"
    assert certificate["spec"]["issuerRef"] == {"kind": "Issuer", "name": one(objects, "Issuer")["metadata"]["name"]}
    service = one(objects, "Service", settings.webhook_service)["metadata"]["name"]
    assert f"{service}.{NAMESPACE}.svc" in certificate["spec"]["dnsNames"], "the name by which the API server calls"
    configuration = one(objects, "ValidatingWebhookConfiguration")
    wanted = {"cert-manager.io/inject-ca-from": f"{NAMESPACE}/{certificate['metadata']['name']}"}
    assert configuration["metadata"]["annotations"] == wanted
    # Nobody but cert-manager makes the Secret, and it is the one that the operator may read.
    assert settings.webhook_secret not in {each["metadata"]["name"] for each in of_kind(objects, "Secret")}
    roles = [rule for role in of_kind(objects, "Role") for rule in role["rules"]]
    assert [settings.webhook_secret] in [rule.get("resourceNames") for rule in roles]
    issued = {"name": "corp", "kind": "ClusterIssuer"}
    objects = chart.render({"webhook": {"certManager": manager | {"issuerRef": issued}}})
    assert one(objects, "Certificate")["spec"]["issuerRef"] == issued
    assert of_kind(objects, "Issuer") == []


def test_more_flags_objects_and_contexts_are_passed_on(chart: Chart) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-text\n"
    mapping = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Namespace }}-mapping"}}
    objects = chart.render({
        "operator": {"extraArgs": ["--settle-seconds=2.5", "--log-level=error"]},
        "extraObjects": [text, mapping],
        "pod": {"securityContext": {"runAsUser": None, "fsGroup": 7},
                "containerSecurityContext": {"readOnlyRootFilesystem": False}},
    })  # fmt: skip
    settings = Settings.load(container(objects)["args"], {})
    assert (settings.settle_seconds, settings.log_level) == (2.5, "error")
    assert one(objects, "ConfigMap", f"{RELEASE}-text")
    assert one(objects, "Secret", f"{NAMESPACE}-mapping")
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["fsGroup"] == 7
    assert "runAsUser" not in spec["securityContext"]
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"] is False
    assert container(objects)["securityContext"]["allowPrivilegeEscalation"] is False


def test_helm_test_asks_the_webhook_where_runs_are_served(chart: Chart) -> None:
    for namespaces, expected in (([], NAMESPACE), (["team-a", "team-b"], "team-a")):
        values = {"namespaces": namespaces}
        objects, hooks = chart.render(values), chart.hooks(values)
        pod = one(hooks, "Pod")
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        (asking,) = pod["spec"]["containers"]
        assert asking["command"] == ["videotrain-operator", "ask-webhook", expected]
        assert asking["image"] == container(objects)["image"]
        role = one(hooks, "Role", pod["metadata"]["name"])
        assert role["metadata"]["namespace"] == expected
        assert role["rules"] == [{"apiGroups": ["videotrain.dev"], "resources": ["videotrainingruns"],
                                  "verbs": ["create"]}]  # fmt: skip
        selector = one(objects, "Service", RELEASE)["spec"]["selector"]
        assert not selector.items() <= pod["metadata"]["labels"].items(), "it is no replica"
    assert one(objects, "ValidatingWebhookConfiguration")["webhooks"][0]["name"] == WEBHOOK


def test_only_the_webhook_refuses_what_helm_test_sends() -> None:
    verdict = review_request({"operation": "CREATE", "object": WRONG})
    assert [problem.path for problem in verdict.problems] == ["spec.podTemplate.spec.hostname"]


def test_the_values_of_the_gitops_examples_are_ones_of_the_chart() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    (application,) = documents(ROOT / "manifests" / "gitops" / "argocd.yaml")
    source = application["spec"]["source"]
    assert source["targetRevision"] == version
    assert not source["repoURL"].startswith("oci://")
    _, repository, release = documents(ROOT / "manifests" / "gitops" / "flux.yaml")
    assert repository["spec"]["url"].startswith("oci://")
    assert release["spec"]["chartRef"] == {"kind": repository["kind"], "name": repository["metadata"]["name"]}
    for values in (source["helm"]["valuesObject"], release["spec"]["values"]):
        jsonschema.validate(values, values_schema())
        parse_defaults(values["runDefaults"])


def test_argo_cd_ignores_what_the_operator_writes(chart: Chart) -> None:
    (application,) = documents(ROOT / "manifests" / "gitops" / "argocd.yaml")
    values: dict[str, Any] = application["spec"]["source"]["helm"]["valuesObject"]
    objects = chart.render(values)
    for ignored in application["spec"]["ignoreDifferences"]:
        assert one(objects, ignored["kind"], ignored.get("name"))
    named = {(each["kind"], each.get("name")) for each in application["spec"]["ignoreDifferences"]}
    assert {("Secret", each["metadata"]["name"]) for each in of_kind(objects, "Secret")} <= named
