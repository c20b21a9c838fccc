"""A field of a manifest that no code reads would be a promise without a keeper."""

from __future__ import annotations

import ast
from pathlib import Path

from videotrain_api.generate.reference import reachable_models
from videotrain_api.resource.stages import ConditioningMix
from videotrain_api.resource.trainrun import RestartLimits, VideoTrainingRunSpec
from videotrain_trainer.curation.bounds import BOUNDS

ROOT = Path(__file__).parents[3]
PACKAGES = ("api/videotrain_api", "operator/videotrain_operator", "trainer/videotrain_trainer", "cli/videotrain")
READ_BY_NAME = (ConditioningMix, RestartLimits)
"""Models whose fields are walked over."""


def test_every_field_of_a_manifest_is_read_somewhere():
    read = {
        node.attr
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    read |= {bound.field for bound in BOUNDS}  # of CurateTask, by name
    models = [model for model in reachable_models(VideoTrainingRunSpec) if model not in READ_BY_NAME]
    assert [f"{model.__name__}.{name}" for model in models for name in model.model_fields if name not in read] == []
