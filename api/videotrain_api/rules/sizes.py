"""What must fit into the objects that the API server stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from videotrain_api.config.resolve import resolve
from videotrain_api.resource.stored_size import LARGEST_CONFIG_MAP, stored_bytes
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

LARGEST_SPEC: Final = 192 * 1024
"""Bytes. The rest of what etcd takes of one object is for annotations, managed fields and status."""
_MARGIN: Final = 16 * 1024
"""Bytes for the names of the files in a config map."""


def check_spec_size(run: VideoTrainingRun) -> Iterator[Problem]:
    """A spec that leaves no room for its status."""
    size = stored_bytes(run.spec.model_dump_json(by_alias=True, exclude_unset=True))
    if size > LARGEST_SPEC:
        allowed = f"{LARGEST_SPEC} bytes in all; captions can lie in text files beside the videos"
        yield Problem("spec", f"{size} bytes", f"allowed: {allowed}")


def check_frozen_size(facts: Facts) -> Iterator[Problem]:
    """Stages whose configurations, each with what all stages share, do not fit into one config map beside the spec."""
    configs = resolve(facts.run)
    spec = len(facts.run.spec.model_dump_json(by_alias=True).encode())
    size = spec + sum(len(config.canonical_json().encode()) for config in configs)
    if size > LARGEST_CONFIG_MAP - _MARGIN:
        allowed = f"{LARGEST_CONFIG_MAP - _MARGIN} bytes: have fewer stages, or fewer captions in spec.dataset.captions"
        yield Problem("spec.stages", f"{len(configs)} configurations, {size} bytes", f"allowed: {allowed}")
