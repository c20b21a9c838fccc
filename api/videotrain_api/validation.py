"""Accept or refuse a manifest: types and bounds by the models, everything between fields by the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from videotrain_api.crd.wire import as_served
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.architecture import check_architecture
from videotrain_api.rules.copies import check_copies
from videotrain_api.rules.facts import facts_of
from videotrain_api.rules.layouts import check_layouts, check_worlds
from videotrain_api.rules.locations import check_locations
from videotrain_api.rules.memory import check_memory
from videotrain_api.rules.metadata import check_metadata
from videotrain_api.rules.pods import check_pods
from videotrain_api.rules.sizes import check_frozen_size, check_spec_size
from videotrain_api.rules.sources import check_sources
from videotrain_api.rules.spending import check_affordable, check_spending
from videotrain_api.rules.stages import check_stages
from videotrain_api.rules.tracking import check_tracking
from videotrain_api.rules.training import check_training
from videotrain_api.schema import ManifestError, Problem, problems_of
from videotrain_api.vocabulary import API_VERSION, KIND


def parse_run(data: Any, *, fitting: bool = True) -> VideoTrainingRun:
    """The run that a manifest describes.

    Values must have the type that the API server demands (no `"5"` for a number) and the names of the wire
    (`gpusPerNode`, not `gpus_per_node`).

    Args:
        data: JSON-compatible data, as a YAML or JSON parser gives it.
        fitting: refuse rows that a GPU's memory has no room for, too.

    Raises:
        ManifestError: with every problem found; rules between fields are looked at once all types are right.
    """
    header = list(_header(data))
    if header:
        raise ManifestError(header)
    data, unfit = as_served(data)
    if unfit:
        raise ManifestError(unfit)
    try:
        run = VideoTrainingRun.model_validate(data, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems_of(error, VideoTrainingRun)) from None
    problems = check(run, fitting=fitting)
    if problems:
        raise ManifestError(problems)
    return run


def check(run: VideoTrainingRun, *, fitting: bool = True) -> list[Problem]:
    """Every broken rule between fields; empty if the run can be accepted.

    Args:
        run: whose values have the right types.
        fitting: look at the memory of GPUs, too.
    """
    if too_large := list(check_spec_size(run)):
        return too_large
    facts = facts_of(run)
    problems = [
        *check_metadata(facts),
        *check_architecture(facts),
        *check_stages(facts),
        *check_sources(facts),
        *check_locations(facts),
        *check_layouts(facts),
        *check_training(facts),
        *check_spending(facts),
        *check_tracking(facts),
        *check_pods(facts),
    ]
    worlds, unfit = list(check_worlds(facts)), check_memory(facts) if fitting else ()
    if problems or worlds:
        # A row that neither has enough micro-batches nor fits is told of both.
        return [*problems, *worlds, *(() if problems else unfit)]
    return [*check_affordable(facts), *check_frozen_size(facts), *check_copies(facts), *unfit]


def _header(data: Any) -> Iterator[Problem]:
    if not isinstance(data, dict):
        yield Problem("(root)", data, f"a manifest is a mapping with apiVersion {API_VERSION} and kind {KIND}")
        return
    for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if data.get(name) != expected:
            yield Problem(name, data.get(name), f"allowed: {expected}")
