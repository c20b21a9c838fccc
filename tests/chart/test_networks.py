"""Who may connect to whom in a cluster with a release and its runs: the chart's own policy, and those that its values
make the operator write, judged together by the rules of Kubernetes.
"""

from __future__ import annotations

import pytest
from support.chart import EVERYTHING, NAMESPACE, NAMESPACED, Chart, Json, container, of_kind, one
from support.network_policy import Endpoint, Network
from support.planner_builders import manifest, run_of

from videotrain_api.render.network import render_network_policy
from videotrain_api.render.pod import render_pod
from videotrain_api.vocabulary import PORT_AGENT, PORT_RENDEZVOUS
from videotrain_operator.manager.settings import Settings

METRICS, WEBHOOK = 8080, 9443
PROMETHEUS = Endpoint("10.3.0.1", "monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = Endpoint("10.3.0.2", "kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Endpoint("192.0.2.1")
OTHER_POD = Endpoint("10.3.0.3", "team-a", {"app": "web"})
IN_THE_RELEASE = Endpoint("10.3.0.4", NAMESPACE, {"app": "web"})


class Cluster:
    """A release with these values, and two runs in one namespace and one in another."""

    def __init__(self, chart: Chart, values: Json) -> None:
        objects = chart.render(values)
        rules = Settings.load(container(objects)["args"], {}).cluster_rules().network
        labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
        self.operator = Endpoint("10.2.0.1", NAMESPACE, labels)
        self.workers: list[list[Endpoint]] = []
        policies = of_kind(objects, "NetworkPolicy")
        for number, (name, namespace) in enumerate((("a", "team-a"), ("b", "team-a"), ("a", "team-b"))):
            body = manifest()
            body["metadata"] |= {"name": name, "namespace": namespace, "uid": f"uid-{number}"}
            run = run_of(body)
            pods = [render_pod(run, index, "c")["metadata"]["labels"] for index in range(2)]
            self.workers.append([Endpoint(f"10.1.{number}.{i}", namespace, found) for i, found in enumerate(pods)])
            policies += [render_network_policy(run, rules)] if rules else []
        self.network = Network(tuple(policies))

    def allows(self, source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
        """Whether source may connect to a port of target."""
        return self.network.allows(source, target, port, protocol)


@pytest.mark.parametrize("more", [{}, NAMESPACED], ids=["cluster-wide", "namespaced"])
def test_by_default_each_run_is_alone_with_the_operator(chart: Chart, more: Json) -> None:
    cluster = Cluster(chart, more)
    for number, pods in enumerate(cluster.workers):
        for other, others in enumerate(cluster.workers):
            for port in (PORT_AGENT, PORT_RENDEZVOUS, 40000):
                assert cluster.allows(pods[0], others[1], port) is (number == other)
        assert cluster.allows(cluster.operator, pods[0], PORT_AGENT)
        assert not cluster.allows(cluster.operator, pods[0], PORT_RENDEZVOUS)
        for stranger in (OTHER_POD, IN_THE_RELEASE, PROMETHEUS, API_SERVER):
            assert not cluster.allows(stranger, pods[0], PORT_AGENT)
        assert cluster.allows(pods[0], DNS, 53, "UDP") and cluster.allows(pods[0], Endpoint("52.1.2.3"), 443)
        assert not cluster.allows(pods[0], Endpoint("169.254.169.254"), 80)


def test_the_operator_works_and_its_webhook_is_reached(chart: Chart) -> None:
    cluster = Cluster(chart, {})
    assert cluster.allows(API_SERVER, cluster.operator, WEBHOOK)
    assert cluster.allows(PROMETHEUS, cluster.operator, METRICS)
    assert cluster.allows(cluster.operator, API_SERVER, 6443) and cluster.allows(cluster.operator, DNS, 53, "UDP")
    for pods in cluster.workers:
        for port in (METRICS, WEBHOOK):
            assert not cluster.allows(pods[0], cluster.operator, port)
    assert not cluster.allows(cluster.operator, OTHER_POD, PORT_AGENT)


def test_prometheus_reads_agents_once_it_is_set_up(chart: Chart) -> None:
    cluster = Cluster(chart, {"monitoring": {"podMonitor": {"enabled": True}}})
    assert cluster.allows(PROMETHEUS, cluster.workers[0][0], PORT_AGENT)
    assert not cluster.allows(PROMETHEUS, cluster.workers[0][0], PORT_RENDEZVOUS)
    assert not cluster.allows(OTHER_POD, cluster.workers[0][0], PORT_AGENT)


def test_named_scrapers_read_metrics_and_nobody_else(chart: Chart) -> None:
    named = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    values = {"networkPolicy": {"metricsFrom": named}, "monitoring": {"podMonitor": {"enabled": True}}}
    cluster = Cluster(chart, values)
    elsewhere = Endpoint("10.3.0.9", "team-b", {"app.kubernetes.io/name": "prometheus"})
    for target, port in ((cluster.operator, METRICS), (cluster.workers[0][0], PORT_AGENT)):
        assert cluster.allows(PROMETHEUS, target, port)
        assert not cluster.allows(elsewhere, target, port)


def test_values_for_runs_arrive_in_their_policies(chart: Chart) -> None:
    cluster = Cluster(chart, EVERYTHING)
    worker = cluster.workers[0][0]
    assert cluster.allows(worker, Endpoint("52.1.2.3"), 9000) and cluster.allows(worker, Endpoint("52.1.2.3"), 3128)
    assert cluster.allows(worker, Endpoint("169.254.170.23"), 80)
    assert cluster.allows(OTHER_POD, worker, 8080) and not cluster.allows(OTHER_POD, worker, PORT_RENDEZVOUS)


@pytest.mark.parametrize(
    ("endpoint", "port", "namespace"),
    [("", 443, ""), ("https://s3.example.org:8443", 8443, ""), ("http://minio.storage", 80, "storage")],
)
def test_the_operator_reaches_the_object_store_of_bills_and_who_has_its_credentials(
    chart: Chart, endpoint: str, port: int, namespace: str
) -> None:
    bills = {"uri": "s3://finance/bills", "endpointUrl": endpoint, "metadataServices": ["169.254.170.23/32"]}
    ports = {"networkPolicy": {"apiServerPorts": [6443]}}
    cluster, without = Cluster(chart, {"bills": bills} | ports), Cluster(chart, ports)
    assert cluster.allows(cluster.operator, Endpoint("52.1.2.3"), port)
    assert not without.allows(without.operator, Endpoint("52.1.2.3"), port)
    minio = Endpoint("10.3.0.7", "storage", {"app": "minio"})
    assert cluster.allows(cluster.operator, minio, 9000) is (namespace == "storage")
    agent = Endpoint("169.254.170.23")
    assert cluster.allows(cluster.operator, agent, 80) and not without.allows(without.operator, agent, 80)


def test_the_chart_itself_writes_no_policy_for_workers(chart: Chart) -> None:
    for values in ({}, NAMESPACED, EVERYTHING):
        (policy,) = of_kind(chart.render(values), "NetworkPolicy")
        assert policy["metadata"]["namespace"] == NAMESPACE


def test_switched_off_nothing_is_closed(chart: Chart) -> None:
    cluster = Cluster(chart, {"networkPolicy": {"enabled": False}})
    assert cluster.network.policies == ()
    assert cluster.allows(OTHER_POD, cluster.workers[0][0], PORT_AGENT)
