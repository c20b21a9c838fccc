"""Logs of a run by TorchX: the real client against a server that answers as the API server does.

Process nodes have no kubelet that serves logs, so a cluster of this machine cannot be asked.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from support.planner_builders import manifest
from torchx.schedulers.api import Stream

from videotrain.torchx import scheduler as module
from videotrain.torchx.scheduler import create_scheduler
from videotrain_api.vocabulary import LABEL_INDEX, Phase

APP = "team:demo"


class Cluster:
    """One run, its pods, and their logs; the second look at the run finds it ended and worker 0 replaced."""

    def __init__(self):
        self.logs = {
            "demo-w0": ["2026-11-29T10:00:01.5Z first", "2026-11-29T10:00:02Z loss 0.5"],
            "demo-w0-new": ["2026-11-29T10:00:09.000000001Z loss 0.25", "2026-11-29T10:00:10Z 7 % é"],
            "demo-w1": ["2026-11-29T10:00:01Z other"],
        }
        self.asked, self.looks = [], 0

    def answer(self, path):
        parts = urlsplit(path)
        self.asked.append((parts.path, parse_qs(parts.query)))
        if parts.path.endswith("/log"):
            return "".join(line + "\n" for line in self.logs[parts.path.split("/")[-2]])
        if parts.path.endswith("/pods"):
            return json.dumps({"items": self.pods()})
        self.looks += 1
        phase = Phase.RUNNING if self.looks == 1 else Phase.SUCCEEDED
        return json.dumps({**manifest(), "status": {"phase": phase}})

    def pods(self):
        made = [("demo-w0", 0, "10:00:00"), ("demo-w1", 1, "10:00:00")]
        made += [("demo-w0-new", 0, "10:00:05")] if self.looks > 1 else []
        return [
            {
                "metadata": {
                    "name": name,
                    "namespace": "team",
                    "uid": name,
                    "labels": {LABEL_INDEX: str(index)},
                    "creationTimestamp": f"2026-11-29T{clock}Z",
                },
                "status": {"phase": "Running"},
            }
            for name, index, clock in made
        ]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = cluster.answer(self.path).encode()
            self.send_response(200)
            self.send_header(
                "Content-Type", "text/plain" if self.path.split("?")[0].endswith("/log") else "application/json"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    # The client reads the variable when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    yield cluster
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_says_what_to_do_where_no_cluster_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(module.NoCluster, match="Set KUBECONFIG"):
        create_scheduler("test").describe(APP)


def lines(**how):
    return list(create_scheduler("test").log_iter(APP, "worker", **how))


def test_the_log_of_a_worker_is_told_whole(cluster):
    assert lines() == ["first\n", "loss 0.5\n"]
    assert lines(k=1) == ["other\n"]
    assert lines(k=5) == []


def test_a_tailed_log_goes_on_in_the_pod_that_takes_the_place(cluster):
    assert lines(should_tail=True) == ["first\n", "loss 0.5\n", "loss 0.25\n", "7 % é\n"]
    assert {query["follow"][0] for path, query in cluster.asked if path.endswith("/log")} == {"true"}


def test_lines_are_chosen_by_expression_and_by_time(cluster):
    assert lines(regex=r"loss \d", should_tail=True) == ["loss 0.5\n", "loss 0.25\n"]
    since = datetime(2026, 11, 29, 10, 0, 2, tzinfo=UTC)
    cluster.looks = 0
    until = datetime(2026, 11, 29, 10, 0, 9, 500, tzinfo=UTC)
    assert lines(since=since, until=until, should_tail=True) == ["loss 0.5\n", "loss 0.25\n"]


def test_another_role_and_one_stream_alone_are_refused(cluster):
    with pytest.raises(ValueError, match="has one role, 'worker'"):
        list(create_scheduler("test").log_iter(APP, "trainer"))
    with pytest.raises(ValueError, match="use combined"):
        lines(streams=Stream.STDERR)


def test_an_application_that_is_no_place_is_refused(cluster):
    with pytest.raises(ValueError, match="NAMESPACE:NAME is needed"):
        create_scheduler("test").describe("demo")


def test_the_namespace_of_the_kubeconfig_is_used_where_nothing_else_is_named(cluster):
    from videotrain.torchx.app import app_of

    body = manifest()
    body["metadata"].pop("namespace", None)
    info = create_scheduler("test").submit_dryrun(app_of(body), {})
    assert info.request.run["metadata"]["namespace"] == "team"
