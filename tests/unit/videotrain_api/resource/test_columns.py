"""The short texts of `kubectl get`."""

from __future__ import annotations

import pytest

from videotrain_api.resource.status import CostStatus, NodesStatus, RunStatus, StageStatus, ThroughputStatus, columns_of


def status(**fields: object) -> RunStatus:
    return RunStatus.model_validate(fields, by_name=True)


def test_before_anything_happened_they_say_nothing():
    columns = columns_of(RunStatus())
    assert (columns.step, columns.nodes, columns.mfu, columns.cost) == ("", "0/0", "", "")


@pytest.mark.parametrize(("total", "text"), [(400, "120/400"), (None, "120")])
def test_steps_of_the_current_stage(total, text):
    stages = [
        StageStatus(name=name, task="train", state="Running", config_hash="0", total_steps=number)
        for name, number in (("first", 7), ("second", total))
    ]
    assert columns_of(status(stage="second", step=120, stages=stages)).step == text


def test_nodes_are_those_of_the_world_and_most_wanted():
    assert columns_of(status(nodes=NodesStatus(current=7, ready=8, min=4, max=8))).nodes == "7/8"


@pytest.mark.parametrize(("value", "text"), [(41.2345, "41%"), (4.26, "4.3%"), (0.0003, "<0.1%"), (0.0, "<0.1%")])
def test_utilisation_is_rounded(value, text):
    assert columns_of(status(throughput=ThroughputStatus(mfu_percent=value))).mfu == text


@pytest.mark.parametrize(
    ("micros", "currency", "text"),
    [
        (12_345_000, "USD", "$12.35"),
        (12_344_999, "EUR", "12.34 EUR"),
        (999_994_999, "USD", "$999.99"),
        (999_995_000, "USD", "$1000"),
        (199_600_500_000, "USD", "$199601"),
    ],
)
def test_cents_matter_while_the_bill_is_small(micros, currency, text):
    assert columns_of(status(cost=CostStatus(currency=currency, total_micros=micros))).cost == text
