"""The configuration that a run was accepted with, and what of it may change."""

from __future__ import annotations

import json
from typing import Any

from support.planner_builders import manifest, run_of

from videotrain_api.frozen_config import config_data, effective_run
from videotrain_api.vocabulary import FROZEN_SPEC_KEY


def frozen(**spec: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(config_data(run_of(manifest(**spec)))[FROZEN_SPEC_KEY])
    return data


def test_bounds_and_budget_are_live_and_the_rest_is_frozen() -> None:
    edited = run_of(
        manifest(
            nodes={"min": 2, "max": 5},
            budget={"maxCost": "9"},
            seed=1,
            suspend=True,
            image="other:1",
            checkpoint={"everySteps": 99},
        )
    )
    effective = effective_run(edited, frozen())
    assert effective.spec.nodes.max == 5 and effective.spec.budget and effective.spec.suspend
    assert effective.spec.seed == 42 and effective.spec.checkpoint.every_steps == 10
    assert effective.spec.image == "other:1", "the API server lets it change only while there are no pods"


def test_a_frozen_spec_that_was_not_edited_is_the_run_itself() -> None:
    run = run_of(manifest())
    assert effective_run(run, frozen()) is run
