"""The values of the Helm chart: the one source of values.yaml, values.schema.json and their reference page.

Every model is closed, so a misspelled value is refused by `helm install` instead of being ignored. What belongs to
Kubernetes (affinity, tolerations, labels ...) is passed on as it is and checked by the API server.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.fields import FieldInfo

from videotrain_api.generate import chart_permissions
from videotrain_api.resource.bill_storage import ENDPOINT
from videotrain_api.resource.locations import StorageUri
from videotrain_api.resource.network_peers import DNS_PEERS, Cidr, Peer, Port
from videotrain_api.resource.run_defaults import REGISTRY, DefaultName
from videotrain_api.resource.trainrun import LONGEST_SECONDS
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_api.schema import camel_case, models_in

CHART: Final = "charts/videotrain"
_COMMAND: Final = "python -m videotrain_api.generate write"
_WIDTH: Final = 118
_DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

_STORAGE_URI: Final = next(part.pattern for part in get_args(StorageUri) if isinstance(part, StringConstraints))

Namespace = Annotated[str, StringConstraints(pattern=_DNS_LABEL, max_length=63)]
CommonName = Annotated[str, StringConstraints(pattern=r"^[^,\s]([^,]*[^,\s])?$")]
Free = dict[str, Any]
"""An object of Kubernetes' own API."""
Texts = dict[str, str]
Quantities = dict[str, str | int | float]


class _Values(BaseModel):
    model_config = ConfigDict(
        alias_generator=camel_case, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class Image(_Values):
    """The image of the operator, which the webhook and every replica run."""

    repository: str = Field("videotrain/operator", min_length=1)
    """Repository, with the registry unless the nodes have a default one."""
    tag: str = ""
    """Tag; the chart's appVersion if empty."""
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Digest, such as sha256:...; it wins over the tag."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull the image."""


class NodeTrust(_Values):
    """When nodes that look lost are believed to be. Beyond this the operator's view is more likely wrong."""

    max_lost_percent: int = Field(55, ge=1, le=100)
    """Largest share of the nodes in use that may be lost at the same time, percent. Above it nothing is done about lost
    nodes for up to ten minutes, and runs have the condition NodesTrusted False."""


class Operator(_Values):
    """Flags of `videotrain-operator run`."""

    log_format: Literal["json", "text"] = "json"
    """Form of log lines: json for machines, text for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    lease_seconds: int = Field(10, ge=3, le=300)
    """How long a leader that fell silent is waited for, seconds. Shorter takes over sooner and writes more often."""
    concurrent_passes: int = Field(64, ge=1, le=1024)
    """Runs that are worked on at the same time."""
    resync_seconds: int = Field(300, ge=10, le=86400)
    """How often all runs are read anew, seconds; a safety net, since changes wake a run at once."""
    otlp_endpoint: str = Field("", pattern=r"^(https?://[^/]+(/.*)?)?$")
    """Address of an OpenTelemetry collector that takes OTLP over HTTP, such as http://collector.monitoring:4318. It
    gets a span of each pass and a trace of each recovery; there are none if empty. With networkPolicy.enabled the
    operator reaches it at port 4318 alone."""
    node_trust: NodeTrust = NodeTrust()
    extra_args: list[str] = Field(default=[])
    """More flags, such as --settle-seconds=1; the last of a name wins."""


class Resources(_Values):
    """Resources of an operator pod. There is no CPU limit, since throttling would delay recoveries."""

    requests: Quantities = Field(default={"cpu": "100m", "memory": "256Mi"})
    """What the scheduler sets aside; enough for some hundred runs."""
    limits: Quantities = Field(default={"memory": "1Gi"})
    """Where the pod is stopped; about 1,000 runs of 8 pods take 300 MB."""


class ServiceAccount(_Values):
    """The identity of the operator."""

    create: bool = True
    """Create it. If false, name one that exists in the release's namespace."""
    name: str = ""
    """Its name; the release's full name if empty."""
    annotations: Texts = Field(default={})
    """Annotations."""


class Rbac(_Values):
    """Rights. docs/reference/permissions.md lists each with its reason."""

    create: bool = True
    """Create roles and bindings. If false, somebody else grants what the page lists."""
    aggregate: bool = True
    """Create ClusterRoles that let the stock roles view, edit and admin read and write runs."""
    owner_references_permission_enforcement: bool = False
    """Also grant what the admission plugin OwnerReferencesPermissionEnforcement asks for; needed on OpenShift."""


class Crds(_Values):
    """The CustomResourceDefinition of VideoTrainingRun."""

    install: bool = True
    """Install it, and upgrade it with the release. One that somebody else brought is left as it is."""
    adopt: bool = False
    """Take over one that somebody else brought; Helm then wants --take-ownership --force-conflicts as well."""
    keep: bool = True
    """Keep it at uninstall. If false, uninstalling deletes every run of the whole cluster with it."""


class Pod(_Values):
    """What else goes into operator pods."""

    annotations: Texts = Field(default={})
    """Annotations."""
    labels: Texts = Field(default={})
    """Labels beside the standard ones."""
    node_selector: Texts = Field(default={})
    """Node labels to require."""
    tolerations: list[Free] = Field(default=[])
    """Taints to tolerate."""
    affinity: Free = Field(default={})
    """Affinity. If empty, the pods prefer different nodes."""
    topology_spread_constraints: list[Free] = Field(default=[])
    """Spread constraints. If empty, the pods prefer different zones."""
    priority_class_name: str = ""
    """Priority class. The operator keeps paid GPUs busy: system-cluster-critical is not too much where allowed."""
    extra_env: list[Free] = Field(default=[])
    """Environment variables, such as HTTPS_PROXY, in the form of a container's env."""
    security_context: Free = Field(
        default={
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    )
    """Security context of the pods; null takes a field out, such as runAsUser where OpenShift chooses it."""
    container_security_context: Free = Field(
        default={
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    )
    """Security context of their containers."""


class PodDisruptionBudget(_Values):
    """How many operator pods a drain may take at once."""

    enabled: bool = True
    """Create it."""
    max_unavailable: int = Field(1, ge=1)
    """Pods that may be away. With 1 a drain is never blocked, and a standby stays."""


class CertManager(_Values):
    """Let cert-manager make and renew the webhook's certificate, and register its authority."""

    enabled: bool = False
    """Create a Certificate; the operator then serves with it, and makes none of its own."""
    issuer_ref: Free = Field(default={})
    """Issuer or ClusterIssuer, as {name, kind, group}; a self-signed Issuer of the release if empty."""


class Webhook(_Values):
    """The validating webhook: what the CRD's own rules cannot say is refused by `kubectl apply` at once."""

    enabled: bool = True
    """Serve and register it. Without it the operator marks such runs as not Accepted a moment later."""
    failure_policy: Literal["Ignore", "Fail"] = "Ignore"
    """What happens while it does not answer. With Fail nobody can edit a run, not even suspend it, while the operator
    is away; with Ignore nothing gets past, since the operator checks every run again."""
    timeout_seconds: int = Field(10, ge=1, le=30)
    """Longest wait for its answer, seconds."""
    client_ca_config_map: str = Field("", alias="clientCAConfigMap")
    """ConfigMap of the release's namespace with the authority (key ca.crt) of the API server's client certificate,
    which is then required. Only where the API server is set up to present one; everybody may send reviews if empty."""
    client_names: list[CommonName] = Field(default=[])
    """Common names that the client certificate may have; any if empty."""
    cert_manager: CertManager = CertManager()


class RunNetworks(_Values):
    """What the operator's policy for each run allows beside the run's own pods, the operator, and object stores: TCP
    443 and the port of spec.storage.endpointUrl of every address at which no cloud hands out credentials.
    """

    dns_to: list[Peer] = Field(default=DNS_PEERS)
    """Who answers DNS at port 53, as a list of network policy peers; the second is NodeLocal DNSCache."""
    storage_ports: list[Port] = Field(default=[])
    """More ports of object stores."""
    metadata_services: list[Cidr] = Field(default=[])
    """Addresses of credential services that workers may ask: 169.254.170.23/32 for EKS Pod Identity,
    169.254.169.254/32 for the metadata of nodes, which gives workers all that the node may do. Credentials by Secret,
    IRSA and the workload identity of Azure need none."""
    ingress: list[Free] = Field(default=[])
    """More ingress rules, in the form of a NetworkPolicy; [{}] lets everybody in."""
    egress: list[Free] = Field(default=[])
    """More egress rules, in the form of a NetworkPolicy, such as to a proxy; [{}] lets workers reach everything."""


class NetworkPolicies(_Values):
    """Network policies: of the operator's pods, and by the operator one for the worker pods of each run. They have an
    effect only where the cluster's network enforces them.
    """

    enabled: bool = True
    """Create them. If turned off, those of runs that are there stay until the runs are deleted."""
    api_server_ports: list[Port] = Field(default=[443, 6443])
    """Ports of the API server's endpoints, to which the operator may connect."""
    api_server_cidrs: list[Cidr] = Field(default=[], alias="apiServerCIDRs")
    """Addresses from which the API server calls the webhook; everybody may call it if empty. No selector reaches an API
    server outside of the pod network: these are the addresses of its machines, or of what it tunnels through."""
    metrics_from: list[Free] = Field(default=[])
    """Who may read metrics, as a list of network policy peers, each with its namespaceSelector. If empty: of the
    operator everybody; of workers nobody, or with monitoring.podMonitor pods labelled
    app.kubernetes.io/name: prometheus."""
    runs: RunNetworks = RunNetworks()


class PodTemplates(_Values):
    """What `spec.podTemplate` of a run may make of worker pods."""

    policy: PodPolicy = DEFAULT_POD_POLICY
    """Pod Security Standard of Kubernetes that worker pods keep to, checked when a run is created, and again when it
    begins anew after a suspension; runs that hold pods go on. baseline also allows root and some capabilities; any
    leaves pods to the cluster's own admission, and only then may they hold credentials of Kubernetes or have a system
    priority class."""


class Prices(_Values):
    """What nodes cost, whatever runs say. If it has no prices, those of the runs' pools hold. `--price-list` of the
    command takes a file with these values, or with this part of them alone.
    """

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    """Of every amount. Runs in another currency have the prices of their pools."""
    prices: list[Free] = Field(default=[])
    """Prices in the order in which they are tried: nodeLabels, capacity (on-demand, spot or reserved), pricePerGpuHour
    or pricePerNodeHour, validFrom, validTo, runsMayOverride. The first that fits and is valid holds; one that changes
    holds from then on, also for pods that run."""
    commitments: list[Free] = Field(default=[])
    """GPUs that are paid whether runs hold them or not: name, nodeLabels, capacity (reserved), gpus, pricePerGpuHour,
    validFrom, validTo. Metrics tell which of them nobody holds; no run pays for them."""
    storage: Free = Field(default={})
    """What the object store takes, for estimates alone: pricePerGibibyteMonth, pricePerThousandWrites,
    pricePerThousandReads. `videotrain plan` and `bill` read it with --price-list."""


class Bills(_Values):
    """An object store to which the operator copies the bill of each run that it keeps, where it outlives the cluster;
    docs/how-to/bills.md. Bills are config maps of the release's namespace in any case.
    """

    uri: str = Field("", pattern=rf"{_STORAGE_URI}|^$")
    """Bucket and prefix, such as s3://finance/videotrain. Bills are not copied if empty."""
    endpoint_url: str = Field("", pattern=rf"{ENDPOINT}|^$")
    """S3 endpoint, such as https://minio.example; AWS if empty."""
    region: str = Field("us-east-1", min_length=1)
    """Region for request signing."""
    credentials_secret: str = ""
    """Secret of the release's namespace with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which may get and put
    objects there and list the bucket. If empty, the operator's service account is asked (serviceAccount.annotations),
    or its node."""
    metadata_services: list[Cidr] = Field(default=[])
    """Addresses of credential services that the operator may ask, as networkPolicy.runs.metadataServices."""


class RunDefaultValues(_Values):
    """What runs get that say nothing else; docs/how-to/administer.md. They become a ConfigMap that the operator reads
    every ten seconds; no change restarts a world.
    """

    image: str = ""
    """Trainer image of runs that name none; videotrain/trainer of the operator's version if empty."""
    registry: str = Field("", pattern=rf"{REGISTRY}|^$")
    """Registry of images that name none, such as registry.example.com/mirror, also of sidecars. Enforced: no image of a
    run comes from another."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """As spec.imagePullPolicy of a run."""
    image_pull_secrets: list[str] = Field(default=[])
    """Names of Secrets beside spec.pool.imagePullSecrets."""
    node_selector: Texts = Field(default={})
    """Labels that a node must have, beside spec.pool.nodeSelector."""
    tolerations: list[Free] = Field(default=[])
    """Tolerations beside spec.pool.tolerations."""
    env: Texts = Field(default={})
    """Environment of the workers, such as HTTPS_PROXY; spec.pool.env adds to it."""
    pod_template: Free = Field(default={})
    """Labels, annotations, sidecars and the like, in the form of a run's spec.podTemplate, which is laid over it."""
    start_deadline_seconds: int | None = Field(86_400, ge=1, le=LONGEST_SECONDS)
    """Longest wait for the first step of a run, seconds; time in a queue or suspended does not count. None if null."""
    active_deadline_seconds: int | None = Field(None, ge=1, le=LONGEST_SECONDS)
    """Longest time with pods held, seconds."""
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=LONGEST_SECONDS)
    """Finished runs are deleted after so many seconds."""
    enforced: list[DefaultName] = Field(default=[])
    """Names of the values above that no run may override: the webhook and the operator refuse one that does. Of
    deadlines and TTL a run may have less; to tolerations and imagePullSecrets it may add nothing."""


class Monitor(_Values):
    """A Prometheus Operator object; needs the CRDs of monitoring.coreos.com."""

    enabled: bool = False
    """Create it."""
    interval: str = Field("15s", pattern=r"^[0-9]+(ms|s|m|h)$")
    """Time between scrapes."""
    labels: Texts = Field(default={})
    """Labels by which Prometheus selects it."""


class GrafanaOperator(_Values):
    """Boards as GrafanaDashboard objects; needs the CRDs of grafana.integreatly.org."""

    enabled: bool = False
    """Create them."""
    instance_selector: Texts = Field(default={"dashboards": "grafana"})
    """Labels of the Grafana objects whose instances get the boards."""
    folder: str = "videotrain"
    """Folder that the boards are put into."""


class Dashboards(_Values):
    """Grafana boards as ConfigMaps, as its sidecar collects them. Some panels ask for what alerts' rules record."""

    enabled: bool = False
    """Create them."""
    labels: Texts = Field(default={"grafana_dashboard": "1"})
    """Labels by which the sidecar finds them."""
    annotations: Texts = Field(default={})
    """Annotations, such as the folder that the sidecar puts them into (grafana_folder)."""
    grafana_operator: GrafanaOperator = GrafanaOperator()
    """The same boards for the Grafana operator."""


class Alerts(_Values):
    """Recording rules and alerts as a PrometheusRule; needs the CRDs of monitoring.coreos.com."""

    enabled: bool = False
    """Create them."""
    labels: Texts = Field(default={})
    """Labels by which Prometheus selects them."""


class Monitoring(_Values):
    """Scraping and alerts by the Prometheus Operator, and boards for Grafana."""

    authorization: bool = True
    """Answer /metrics of the operator only to bearer tokens whose user may get that path (a ClusterRole with
    nonResourceURLs: ["/metrics"]); they tell names, sizes and costs of everybody's runs."""
    service_monitor: Monitor = Monitor()
    """Scrapes the operator: runs, money, reconciliation."""
    pod_monitor: Monitor = Monitor()
    """Scrapes the agents of worker pods: throughput, losses, exits. It is created in the release's namespace."""
    runbooks: str = Field("docs/runbook", min_length=1)
    """Where the pages of docs/runbook are served, such as https://wiki.example/ops; alerts and boards link there."""
    runbook_suffix: str = ".md"
    """What the pages' addresses end with there: .md in a repository, / on the site that `tox -e docs` builds."""
    alerts: Alerts = Alerts()
    """What boards ask for again and again, computed once, and alerts: on hangs, restarts, budgets, stalls, stragglers,
    suspected nodes, and the operator itself. docs/runbook has a page for each."""
    dashboards: Dashboards = Dashboards()
    """Boards: fleet and money, one run, its nodes and GPUs, its data, the operator."""


class ChartValues(_Values):
    """Everything that `helm install --values` may set; the root of values.yaml and of its schema."""

    name_override: str = ""
    """Replaces the chart's name in labels and names."""
    fullname_override: str = Field("", max_length=40)
    """Replaces the whole prefix of object names (RELEASE-videotrain, or RELEASE if that contains videotrain)."""
    common_labels: Texts = Field(default={})
    """Labels of every object of the release."""
    replicas: int = Field(2, ge=1, le=5)
    """Operator pods: one leads, the others wait and answer the webhook."""
    namespaces: list[Namespace] = Field(default=[])
    """Namespaces whose runs this release serves; all if empty. If named, the operator has no rights on anything but
    nodes outside of them. They must exist."""
    image: Image = Image()
    image_pull_secrets: list[Free] = Field(default=[])
    """Secrets for pulling the image, each as {name: ...}."""
    operator: Operator = Operator()
    resources: Resources = Resources()
    pod: Pod = Pod()
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    service_account: ServiceAccount = ServiceAccount()
    rbac: Rbac = Rbac()
    crds: Crds = Crds()
    webhook: Webhook = Webhook()
    pod_template: PodTemplates = PodTemplates()
    network_policy: NetworkPolicies = NetworkPolicies()
    price_list: Prices = Prices()
    bills: Bills = Bills()
    run_defaults: RunDefaultValues = RunDefaultValues()
    monitoring: Monitoring = Monitoring()
    extra_objects: list[Free | str] = Field(default=[])
    """More objects of the release, as mappings or texts; both may hold templates."""


def chart_files() -> dict[str, str]:
    """Content of every generated file of the chart, and of the pages about it, by path."""
    return {
        f"{CHART}/values.yaml": values_yaml(),
        f"{CHART}/values.schema.json": json.dumps(values_schema(), indent=2, ensure_ascii=False) + "\n",
        f"{CHART}/templates/_permissions.tpl": chart_permissions.template(),
        "docs/reference/chart-values.md": values_reference(),
        "docs/reference/permissions.md": chart_permissions.reference(),
    }


def values_schema() -> Free:
    """JSON Schema of the values, in the draft that Helm 3 and 4 both read."""
    schema = ChartValues.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    # Helm hands `global` to every chart that another one depends on.
    schema["properties"]["global"] = {"type": "object", "description": "Values of a parent chart; not read."}
    without_titles: Free = _without_titles(schema)
    return {"$schema": "http://json-schema.org/draft-07/schema#"} | without_titles


def _without_titles(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_titles(value) for key, value in node.items() if not (key == "title" and type(value) is str)}


def values_yaml() -> str:
    """values.yaml: every value with its default below its meaning."""
    head = [f"# Generated by `{_COMMAND}` from api/videotrain_api/generate/chart_values.py; do not edit."]
    return "\n".join([*head, *_yaml_lines(ChartValues, ChartValues(), ""), ""])


def _yaml_lines(model: type[BaseModel], values: BaseModel, indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        value, inner = getattr(values, name), _section(field)
        if not indent:
            yield ""
        for line in textwrap.wrap(_meaning(field), _WIDTH - len(indent) - 2):
            yield f"{indent}# {line}"
        if inner:
            yield f"{indent}{field.alias}:"
            yield from _yaml_lines(inner, value, indent + "  ")
        else:
            yield f"{indent}{field.alias}: {json.dumps(value)}"


def values_reference() -> str:
    """Text of docs/reference/chart-values.md: each value with its default and meaning."""
    lines = [f"<!-- Generated by `{_COMMAND}`; do not edit. -->", "", "# Values of the chart", ""]
    lines += ["Unknown values are refused. `helm show values charts/videotrain` prints the same.", ""]
    lines += ["| Value | Default | Meaning |", "|---|---|---|"]
    return "\n".join([*lines, *_rows(ChartValues, ChartValues(), ""), ""])


def _rows(model: type[BaseModel], values: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        value, inner = getattr(values, name), _section(field)
        if inner:
            yield f"| **{prefix}{field.alias}** | | {_meaning(field)} |"
            yield from _rows(inner, value, f"{prefix}{field.alias}.")
        else:
            yield f"| `{prefix}{field.alias}` | `{json.dumps(value)}` | {_meaning(field)}{_allowed(field)} |"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section of values; None for a single value."""
    return next(iter(models_in(field.annotation)), None)


def _meaning(field: FieldInfo) -> str:
    inner = _section(field)
    own = field.description or (inner.__doc__ if inner else "") or ""
    return " ".join(own.split())


def _allowed(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    return f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
