"""One MFU: what Prometheus shows of a generation and what the run's status shows, from the same records."""

from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.planner_builders import agent, at, manifest, pod, run_of, seen

from videotrain_api.cost import gpus
from videotrain_api.records import StartedRecord, StepRecord
from videotrain_operator.planner.plan import plan
from videotrain_trainer.agent.metrics import AgentMetrics
from videotrain_trainer.agent.progress import ProgressFold
from videotrain_trainer.worker.linux import gpu_kinds
from videotrain_trainer.worker.pod import Pod

FLOPS = 3e15
"""Of a step, which takes a second."""


def snapshot(kinds):
    """What an agent tells of a world of four GPUs after three steps."""
    fold = ProgressFold(1, "train", at(1), kinds)
    common = {"generation": 1, "stage": "train"}
    fold.apply(StartedRecord(**common, at=at(2), world_size=4, resumed_step=0, total_steps=100))
    for step in (1, 2, 3):
        end = at(2 + step)
        fold.apply(
            StepRecord(
                **common,
                step=step,
                started_at=end - timedelta(seconds=1),
                finished_at=end,
                data_stall_us=0,
                checkpoint_us=0,
                samples=8,
                tokens=80,
                model_flops=FLOPS,
                loss=0.5,
            )
        )
    return fold.snapshot()


def series_of(facts):
    """MFU in the agent's series; None without one."""
    metrics = AgentMetrics(
        Pod(name="demo-w0", uid="u", address="127.0.0.2", run="demo", namespace="default", root=Path("/nowhere"))
    )
    metrics.progress(facts)
    families = text_string_to_metric_families(metrics.text().decode())
    return next((s.value for family in families for s in family.samples if s.name == "videotrain_mfu_ratio"), None)


def status_of(facts):
    """Status of the run after the planner has heard two agents tell that."""
    status = {
        "configMap": "demo-config-frozen",
        "generation": 1,
        "observedGeneration": 1,
        "stages": [{"name": "train", "task": "train", "state": "Running", "configHash": "0" * 16, "totalSteps": 100}],
        "generations": [
            {
                "number": 1,
                "stage": "train",
                "reason": "Started",
                "members": ["demo-w0", "demo-w1"],
                "worldSize": 4,
                "gpus": 4,
                "createdAt": "2026-01-01T12:00:01Z",
            }
        ],
    }
    run = run_of(manifest() | {"status": status})
    observed = seen(
        pod(0),
        pod(1),
        agents={f"demo-w{index}": agent(index, facts, at(6)) for index in (0, 1)},
        config_maps={"demo-config-frozen"},
    )
    return plan(run, observed, at(6)).status


@pytest.mark.parametrize(
    ("kinds", "peak"),
    [
        (["NVIDIA H100 80GB HBM3"], 989e12),
        (["NVIDIA H200"], 989e12),
        (["NVIDIA H100 80GB HBM3", "NVIDIA H200"], 989e12),
        (["NVIDIA H100 PCIe"], None),
        (["NVIDIA L4"], None),
        (["NVIDIA H200", "NVIDIA L4"], None),
        ([], None),
    ],
)
def test_status_and_series_show_one_mfu_for_every_kind_of_gpu(kinds, peak):
    facts = snapshot(kinds)
    status = status_of(facts)
    assert status.throughput.samples_per_second == 8, "the planner has heard the agents"
    shown = status.throughput.mfu_percent
    assert series_of(facts) == (None if peak is None else pytest.approx(FLOPS / 4 / peak))
    assert shown == (None if peak is None else pytest.approx(100 * series_of(facts), abs=1e-4))


def test_the_status_names_the_kinds_whose_peak_is_not_known():
    status = status_of(snapshot(["NVIDIA H200", "NVIDIA L4"]))
    assert status.throughput.mfu_unknown == "NVIDIA L4"
    assert status.columns.mfu == "unknown GPU"


@pytest.mark.parametrize(("kinds", "column"), [(["NVIDIA H200"], "76%"), ([], "")])
def test_a_pod_with_known_gpus_or_none_says_nothing_of_unknown_ones(kinds, column):
    status = status_of(snapshot(kinds))
    assert (status.throughput.mfu_unknown, status.columns.mfu) == (None, column)


def test_the_slowest_of_several_known_kinds_counts(monkeypatch):
    monkeypatch.setitem(gpus.KNOWN, "Half", gpus.PEAK_FLOPS / 2)
    assert gpus.peak_flops(["NVIDIA H200", "NVIDIA Half"]) == gpus.PEAK_FLOPS / 2


def test_kinds_come_from_the_driver_each_once(tmp_path):
    for number, kind in enumerate(["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]):
        (tmp_path / f"000{number}").mkdir()
        (tmp_path / f"000{number}" / "information").write_text(f"Model: \t\t {kind}\nIRQ: 1\n")
    assert gpu_kinds(tmp_path) == ["NVIDIA H200", "NVIDIA L4"]
    assert gpu_kinds(tmp_path / "none") == []
