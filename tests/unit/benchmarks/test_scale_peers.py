"""Peers of the scale benchmark in one run: which are measured, and how their figures are compared."""

from __future__ import annotations

import operator_scale
import pytest
from scale.subjects import SUBJECTS, jobset_manifest


def line(peer, begin, cluster, operator=None):
    cpu = {"cluster": cluster} | ({"operator": operator} if operator else {})
    return {"peer": peer, "result": {"trainingCanBeginSeconds": begin, "cpuUntilBegin": cpu}}


def test_each_figure_is_a_ratio_to_each_other_peer_of_the_round():
    lines = [line("videotrain", 8.0, 0.3, 0.06), line("jobset", 10.0, 0.4, 0.03), line("job", 4.0, 0.1)]
    beside = operator_scale.beside(lines[0], lines)["beside"]
    assert beside["jobset"] == {
        "trainingCanBeginSeconds": 0.8,
        "clusterCpuUntilBegin": 0.75,
        "operatorCpuUntilBegin": 2.0,
    }
    assert "operatorCpuUntilBegin" not in beside["job"], "a bare Job has no controller of its own"


def test_a_peer_that_failed_is_compared_with_nobody():
    lines = [line("videotrain", 8.0, 0.3), {"peer": "jobset", "error": "late"}]
    assert operator_scale.beside(lines[0], lines) == {}
    assert operator_scale.beside(lines[1], lines) == {}


def test_peers_are_named_in_one_option(capsys):
    options = operator_scale.parse(["burst", "--peer", "videotrain,jobset,job", "--rounds", "3"])
    assert options.peer == list(SUBJECTS)
    with pytest.raises(SystemExit):
        operator_scale.parse(["burst", "--peer", "kubeflow"])
    assert "there are videotrain, jobset, job" in capsys.readouterr().err


def test_a_failed_pod_restarts_the_whole_set_as_a_training_world_needs_it():
    spec = jobset_manifest("a", 8)["spec"]
    [job] = spec["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == 8
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] > 0
