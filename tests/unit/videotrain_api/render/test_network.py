"""The network policy of a run: who reaches its pods and whom they reach, by the rules of Kubernetes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.network_policy import Endpoint, Network, matches
from support.planner_builders import manifest, run_of

from videotrain_api.render.kueue import PodGroup
from videotrain_api.render.names import worker_labels
from videotrain_api.render.network import CREDENTIAL_SERVICES, NetworkRules, render_network_policy, stored_policy
from videotrain_api.render.pod import render_pod
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import PORT_AGENT, PORT_RENDEZVOUS

OPERATOR_LABELS = {"app.kubernetes.io/name": "videotrain", "app.kubernetes.io/component": "operator"}
OPERATOR = Endpoint("10.9.0.1", "vt-system", OPERATOR_LABELS)
PROMETHEUS = Endpoint("10.9.0.2", "monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = Endpoint("10.9.0.3", "kube-system", {"k8s-app": "kube-dns"})
STRANGER = Endpoint("10.9.0.4", "team-a", {"app": "web"})
STORE = Endpoint("52.1.2.3")
RULES = NetworkRules(
    operator=[
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "vt-system"}},
            "podSelector": {"matchLabels": OPERATOR_LABELS},
        }
    ],
    metrics=[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
)
PORTS = (PORT_AGENT, PORT_RENDEZVOUS, PORT_RENDEZVOUS + 63, 1, 40000, 65535)


def a_run(name: str = "demo", namespace: str = "team-a", uid: str = "uid-1", **spec: Any) -> VideoTrainingRun:
    body = manifest(**spec)
    body["metadata"] |= {"name": name, "namespace": namespace, "uid": uid}
    return run_of(body)


def worker(run: VideoTrainingRun, index: int = 0, address: str = "10.1.0.1") -> Endpoint:
    labels = render_pod(run, index, "c")["metadata"]["labels"]
    return Endpoint(address, run.metadata.namespace, labels, {"agent": PORT_AGENT})


def network(*runs: VideoTrainingRun, rules: NetworkRules = RULES) -> Network:
    return Network(tuple(render_network_policy(run, rules) for run in runs))


def test_own_pods_reach_each_other_on_every_port() -> None:
    run = a_run()
    for port in PORTS:
        for protocol in ("TCP", "UDP", "SCTP"):
            assert network(run).allows(worker(run), worker(run, 1, "10.1.0.2"), port, protocol)


@pytest.mark.parametrize("other", [
    a_run("other"),
    a_run("demo", "team-b", "uid-2"),
    a_run("demo", "team-a", "uid-2"),
], ids=["beside it", "of that name elsewhere", "made again under its name"])  # fmt: skip
def test_a_pod_of_another_run_reaches_nothing(other: VideoTrainingRun) -> None:
    run = a_run()
    both = network(run, other)
    for port in PORTS:
        assert not both.allows(worker(other, 0, "10.1.9.1"), worker(run), port)
        assert not both.allows(worker(run), worker(other, 0, "10.1.9.1"), port)


def test_nobody_else_gets_in_and_who_must_gets_to_the_agent_only() -> None:
    run = a_run()
    walls = network(run)
    for port in PORTS:
        assert not walls.allows(STRANGER, worker(run), port)
        assert not walls.allows(Endpoint("203.0.113.7"), worker(run), port)
        assert walls.allows(OPERATOR, worker(run), port) is (port == PORT_AGENT)
        assert walls.allows(PROMETHEUS, worker(run), port) is (port == PORT_AGENT)


def test_without_a_scraper_nobody_reads_metrics_but_the_operator() -> None:
    run = a_run()
    walls = network(run, rules=RULES.model_copy(update={"metrics": []}))
    assert not walls.allows(PROMETHEUS, worker(run), PORT_AGENT)
    assert walls.allows(OPERATOR, worker(run), PORT_AGENT)


def test_no_peers_means_nobody_and_not_everybody() -> None:
    run = a_run()
    walls = network(run, rules=NetworkRules(operator=[], metrics=[], dns=[]))
    assert not walls.allows(OPERATOR, worker(run), PORT_AGENT)
    assert not walls.allows(worker(run), DNS, 53, "UDP")
    assert not walls.allows(worker(run), STORE, 22)


def test_names_are_looked_up_in_the_cluster_and_in_the_cache_of_the_node() -> None:
    run = a_run()
    for resolver in (DNS, Endpoint("169.254.20.10")):
        for protocol in ("TCP", "UDP"):
            assert network(run).allows(worker(run), resolver, 53, protocol)
    assert not network(run).allows(worker(run), STRANGER, 53, "UDP")
    assert not network(run).allows(worker(run), DNS, 9153)


@pytest.mark.parametrize(("url", "port"), [
    (None, 443),
    ("https://s3.example.com", 443),
    ("https://s3.example.com:8443/", 8443),
    ("http://192.0.2.7:9000", 9000),
    ("http://store.example.org/path", 80),
    ("HTTP://[2001:db8::1]:9000", 9000),
])  # fmt: skip
def test_object_stores_are_reached_at_their_port(url: str | None, port: int) -> None:
    run = a_run(storage={"uri": "s3://videotrain/demo"} | ({"endpointUrl": url} if url else {}))
    walls = network(run)
    for store in (STORE, Endpoint("2001:db8::1")):
        assert walls.allows(worker(run), store, port)
        assert walls.allows(worker(run), store, 443), "for tokens and other buckets"
        assert not walls.allows(worker(run), store, 22)
        assert not walls.allows(worker(run), store, port, "UDP")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_from_the_environment_counts(name: str) -> None:
    item = {"name": name, "value": "http://192.0.2.7:9000"}
    template = {"spec": {"containers": [{"name": "worker", "env": [item]}]}}
    pool = {"gpusPerNode": 2, "pricePerGpuHour": "3.60", "env": {name: item["value"]}}
    for run in (a_run(pool=pool), a_run(podTemplate=template)):
        assert network(run).allows(worker(run), Endpoint("192.0.2.7"), 9000)


@pytest.mark.parametrize(("host", "namespace"), [
    ("minio", "team-a"),
    ("minio.storage", "storage"),
    ("minio.storage.svc", "storage"),
    ("rook-ceph-rgw.rook-ceph.svc.cluster.local", "rook-ceph"),
])  # fmt: skip
def test_a_store_in_the_cluster_is_reached_whatever_port_its_pods_have(host: str, namespace: str) -> None:
    run = a_run(storage={"uri": "s3://videotrain/demo", "endpointUrl": f"http://{host}:80"})
    assert network(run).allows(worker(run), Endpoint("10.7.0.1", namespace, {"app": "store"}), 8080)
    assert not network(run).allows(worker(run), Endpoint("10.7.0.2", "team-b", {"app": "store"}), 8080)


@pytest.mark.parametrize("address", [
    "169.254.169.254", "169.254.170.23", "169.254.170.2", "100.100.100.200", "168.63.129.16",
    "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe",
])  # fmt: skip
def test_credentials_of_the_node_are_out_of_reach_unless_named(address: str) -> None:
    run = a_run(storage={"uri": "s3://videotrain/demo", "endpointUrl": "http://store.example.com"})
    service = Endpoint(address)
    for port in (80, 443):
        assert not network(run).allows(worker(run), service, port)
    length = 128 if ":" in address else 32
    named = NetworkRules(metadata_services=[f"{address}/{length}"])
    assert network(run, rules=named).allows(worker(run), service, 80)


def test_more_ports_and_rules_of_the_chart_add_to_it() -> None:
    run, proxy = a_run(), Endpoint("10.8.0.1", "proxies", {"app": "squid"})
    rules = NetworkRules(
        storage_ports=[9000],
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 8080}]}],
        egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": 3128, "endPort": 3130}]}],
    )
    walls = network(run, rules=rules)
    assert walls.allows(worker(run), STORE, 9000)
    assert walls.allows(STRANGER, worker(run), 8080) and not walls.allows(STRANGER, worker(run), PORT_AGENT)
    assert walls.allows(worker(run), proxy, 3130) and not walls.allows(worker(run), proxy, 3131)
    opened = network(run, rules=NetworkRules(ingress=[{}], egress=[{}]))
    assert opened.allows(STRANGER, worker(run), 1) and opened.allows(worker(run), Endpoint("169.254.169.254"), 80)


def test_pods_of_a_queue_and_of_every_stage_are_covered() -> None:
    run = a_run(queue={"name": "gpus"})
    pod = render_pod(run, 0, "c", group=PodGroup(name="demo-a1", size=3, place=1))
    assert matches(render_network_policy(run, RULES)["spec"]["podSelector"], pod["metadata"]["labels"])


@pytest.mark.parametrize("label", ["app.kubernetes.io/component", "app.kubernetes.io/instance", "videotrain.dev/run"])
def test_no_template_gives_a_worker_the_labels_of_somebody_else(label: str) -> None:
    run = a_run(podTemplate={"metadata": {"labels": {label: "operator"}}})
    assert render_pod(run, 0, "c")["metadata"]["labels"][label] == worker_labels(run, 0)[label]


def test_what_is_rendered_is_in_the_form_that_a_server_stores() -> None:
    rules = RULES.model_copy(update={"egress": [{"ports": [{"port": 25}], "to": []}]})
    spec = render_network_policy(a_run(), rules)["spec"]
    assert spec == stored_policy(spec)
    assert spec["egress"][-1] == {"ports": [{"port": 25, "protocol": "TCP"}]}


@pytest.mark.parametrize("rules", [
    {"metadataServices": ["all"]}, {"storagePorts": [0]}, {"operators": []}, {"egress": {}}, [],
])  # fmt: skip
def test_rules_that_are_none_are_refused(rules: Any) -> None:
    with pytest.raises(ManifestError):
        NetworkRules.from_wire(rules)


NAMES = st.sampled_from(["a", "b", "a-workers"])
RUNS = st.builds(
    a_run,
    name=NAMES,
    namespace=st.sampled_from(["team-a", "team-b"]),
    uid=st.sampled_from(["uid-1", "uid-2", "uid-3"]),
    storage=st.sampled_from(
        [{"uri": "s3://bucket"}, {"uri": "s3://bucket", "endpointUrl": "http://minio.storage:9000"}]
    ),
    podTemplate=st.sampled_from(
        [None, {"metadata": {"labels": {"app": "web", "app.kubernetes.io/name": "prometheus"}}}]
    ),
)


@given(st.lists(RUNS, min_size=2, max_size=5, unique_by=lambda run: run.metadata.uid), st.sampled_from(PORTS))
def test_whatever_runs_there_are_each_is_alone(runs: list[VideoTrainingRun], port: int) -> None:
    walls = network(*runs)
    pods = [(run, worker(run, i, f"10.{n + 1}.0.{i + 1}")) for n, run in enumerate(runs) for i in range(2)]
    for run, source in pods:
        for other, target in pods:
            assert walls.allows(source, target, port) is (run.metadata.uid == other.metadata.uid)
        assert walls.allows(OPERATOR, source, PORT_AGENT)
        assert walls.allows(source, DNS, 53, "UDP") and walls.allows(source, STORE, 443)
        assert not walls.allows(STRANGER, source, port)
        assert not walls.allows(source, OPERATOR, 8080) and not walls.allows(source, OPERATOR, 9443)


def test_what_is_cut_out_lies_in_the_range_that_it_is_cut_out_of() -> None:
    for cidr, cuts in CREDENTIAL_SERVICES.items():
        for cut in cuts:
            assert ip_network(cut).subnet_of(ip_network(cidr)) and ip_network(cut) != ip_network(cidr)  # type: ignore[arg-type]
