"""Rendering of the chart, and questions to what came out."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "videotrain"
RELEASE, NAMESPACE = "videotrain", "vt-system"
Json = dict[str, Any]
Rules = set[tuple[str, str, str, str]]
"""Group, resource, verb, and the one name that it is about (or nothing)."""

OWN = {
    "leases": RELEASE,
    "secrets": f"{RELEASE}-key",
    "webhook.enabled secrets": f"{RELEASE}-webhook",
    "validatingwebhookconfigurations": f"{RELEASE}.{NAMESPACE}",
}
"""The one object of each resource of which the release may touch only its own; by value too, if a right needs one."""

EVERYTHING: Json = {
    "rbac": {"ownerReferencesPermissionEnforcement": True},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {}}],
        "runs": {
            "storagePorts": [9000],
            "metadataServices": ["169.254.170.23/32"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]}],
            "egress": [{"ports": [{"port": 3128}]}],
        },
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "interval": "30s"},
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "pod": {
        "annotations": {"example.com/a": "1"},
        "labels": {"example.com/b": "2"},
        "nodeSelector": {"example.com/c": "3"},
        "tolerations": [{"key": "control", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "system-cluster-critical",
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    },
    "operator": {"extraArgs": ["--settle-seconds=1"]},
    "bills": {
        "uri": "s3://finance/videotrain",
        "endpointUrl": "http://minio.storage:9000",
        "region": "eu-central-1",
        "credentialsSecret": "bills",
        "metadataServices": ["169.254.170.23/32"],
    },
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": "{{ .Release.Name }}-extra",
                "namespace": "{{ .Release.Namespace }}",
                "labels": {
                    "app.kubernetes.io/instance": "{{ .Release.Name }}",
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/part-of": "videotrain",
                    "team": "video",
                },
            },
        },
    ],
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"annotations": {"example.com/d": "4"}},
    "commonLabels": {"team": "video"},
    "runDefaults": {
        "image": "videotrain/trainer:0.1.0",
        "registry": "registry.example.com:5000/mirror",
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["mirror"],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "env": {"HTTPS_PROXY": "http://proxy:3128"},
        "podTemplate": {"spec": {"initContainers": [{"name": "proxy", "image": "x:1", "restartPolicy": "Always"}]}},
        "startDeadlineSeconds": 600,
        "activeDeadlineSeconds": 1_000_000_000,
        "ttlSecondsAfterFinished": 0,
        "enforced": ["image", "registry", "tolerations", "ttlSecondsAfterFinished"],
    },
    "webhook": {"failurePolicy": "Fail", "clientCAConfigMap": "api-server-ca", "clientNames": ["kube-apiserver"]},
}
"""Values that take every way through the templates."""
NAMESPACED: Json = {"namespaces": ["team-a", "team-b"]}
NOTHING: Json = {
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False, "name": "someone"},
    "crds": {"install": False},
    "webhook": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
}
"""Values that switch everything off that can be."""


class _Loader(yaml.CSafeLoader):
    """Reads `1e-15` as a number, as Kubernetes does; PyYAML alone wants a point in it."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^-?[0-9]+e-?[0-9]+$"), list("-0123456789"))


@dataclass(frozen=True)
class Chart:
    """The chart and the helm that renders it."""

    helm: Path
    home: Path

    def run(self, *arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
        """Any helm command on the chart, with values."""
        folders = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [str(self.helm), *arguments, "--values", "-"],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | folders,
        )

    def template(self, values: Json | None = None, *more: str) -> subprocess.CompletedProcess[str]:
        """`helm template` as it is."""
        return self.run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *more, values=values)

    def render(self, values: Json | None = None, *more: str) -> list[Json]:
        """All objects of a release, without what `helm test` makes."""
        done = self.template(values, "--no-hooks", *more)
        assert done.returncode == 0, done.stderr
        return [item for item in yaml.load_all(done.stdout, _Loader) if item]

    def hooks(self, values: Json | None = None) -> list[Json]:
        """The objects that Helm makes at some times only."""
        done = self.template(values)
        assert done.returncode == 0, done.stderr
        objects = [item for item in yaml.load_all(done.stdout, _Loader) if item]
        return [item for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})]


def of_kind(objects: list[Json], kind: str) -> list[Json]:
    """Objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def boards_of(objects: list[Json]) -> list[Json]:
    """ConfigMaps with boards for Grafana: all but the one with the defaults for runs."""
    return [
        item for item in of_kind(objects, "ConfigMap") if "defaults.json" not in item.get("data", {"defaults.json": ""})
    ]


def one(objects: list[Json], kind: str, name: str | None = None) -> Json:
    """The only object of a kind, or the one of that name."""
    (found,) = [item for item in of_kind(objects, kind) if name in (None, item["metadata"]["name"])]
    return found


def names(objects: list[Json]) -> set[tuple[str, str, str]]:
    """Kind, namespace and name of objects."""
    return {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]) for o in objects}


def rules_of(role: Json) -> Rules:
    """A role's rules, one by one."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def container(objects: list[Json]) -> Json:
    """The operator's container."""
    (found,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def table(place: str, *, but: str | None = None) -> Rules:
    """Rules in docs/reference/permissions.md for a place, without those that need the value `but`."""
    page = (ROOT / "docs" / "reference" / "permissions.md").read_text()
    found: Rules = set()
    for row in re.findall(r"^\| (.+) \|$", page, re.MULTILINE):
        where, group, resource, verbs, only, needs, *_ = [cell.strip(" `") for cell in row.split("|")] + [""] * 6
        resource = resource.strip("`")
        if where == place and needs != but:
            name = OWN.get(f"{needs} {resource}", OWN.get(resource, "")) if only else ""
            found |= {("" if group == "core" else group, resource, verb, name) for verb in verbs.split(", ")}
    return found


def kustomized(chart: Chart) -> list[Json]:
    """The chart's objects without the CRDs, and without what only Helm reads."""
    objects = chart.render(None, "--namespace", "videotrain-system")
    kept = [each for each in objects if each["kind"] != "CustomResourceDefinition"]
    for each in kept:
        pods = each["spec"]["template"]["metadata"] if each["kind"] == "Deployment" else {}
        for head in (each["metadata"], pods):
            for parts in (head.get("labels", {}), head.get("annotations", {})):
                for name in [name for name in parts if name.startswith("helm.sh/")]:
                    del parts[name]
                if "app.kubernetes.io/managed-by" in parts:
                    parts["app.kubernetes.io/managed-by"] = "kustomize"
        if not each["metadata"].get("annotations", True):
            del each["metadata"]["annotations"]
    return kept
