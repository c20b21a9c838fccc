"""Edits of what stages do: frozen anew, at once where nothing runs by it, else after the running stage has saved.

The configuration has another hash then. Pods that were made before mount the old one, so the roster brings the new one
along, and only new pods have it mounted.
"""

from __future__ import annotations

from videotrain_api.config.edits import Reached, edit_problems
from videotrain_api.frozen_config import config_data, data_hash, problems_in, stage_configs
from videotrain_api.reasons import Message, Reason
from videotrain_api.render.defaults import with_defaults
from videotrain_api.render.names import config_map_name
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import GenerationReason
from videotrain_operator.planner.draft import Draft

_DECISION = "Edit"
"""By which the status notes since when an edit waits."""


def edit_error(draft: Draft, run: VideoTrainingRun) -> ManifestError | None:
    """Why the stages of a run cannot become those of `run`; None if they can."""
    live = draft.live
    reached = {
        stage.name: Reached(stage.state, max(stage.saved_step, stage.step if live is not None else 0))
        for stage in draft.status.stages
    }
    try:
        problems = list(problems_in(run)) or edit_problems(draft.run, run, reached)
    except ManifestError as error:
        return error
    return ManifestError(problems) if problems else None


def freeze_anew(draft: Draft, run: VideoTrainingRun) -> None:
    """Put the configurations of `run` on record in place of those that were frozen, and tell of them.

    Args:
        draft: the pass.
        run: without the cluster's defaults, which are not frozen.
    """
    data, configs = config_data(run), {config.stage.name: config for config in stage_configs(run)}
    old = draft.status
    for stage in old.stages:
        config = configs[stage.name]
        total = config.stage.total_steps if config.stage.total_steps is not None else stage.total_steps
        draft.update_stage(stage.name, config_hash=config.hash(), total_steps=total)
    draft.config_data = data
    draft.update(config_map=config_map_name(run, data_hash(data)))
    changed = zip(old.stages, draft.status.stages, strict=True)
    hashes = ", ".join(f"{new.name} {was.config_hash} -> {new.config_hash}" for was, new in changed if was != new)
    draft.tell("Normal", Reason.STAGES_EDITED, Message.STAGES_EDITED.text(hashes=hashes))
    draft.look_again(0)


def note_edit(draft: Draft, run: VideoTrainingRun) -> None:
    """Remember an edit of a run that holds pods, or why it cannot be taken."""
    error = edit_error(draft, run)
    if error is None:
        draft.edited = run
    else:
        draft.edit_refused = str(error)


def take_edit(draft: Draft) -> bool:
    """Take an edit that waits, if its moment has come; a generation of the stage that it changes ends then.

    Returns:
        Whether it was: it is to be on record before anything begins by it.
    """
    run = draft.edited
    if run is None or draft.ended or draft.finished() or draft.held or draft.suspend_reason is not None:
        return False
    if not _has_come(draft, run):
        return False
    live = draft.live
    changed = live is not None and _hash_of(run, live.stage) != _hash_of_stage(draft, live.stage)
    freeze_anew(draft, run)
    draft.run = with_defaults(run, draft.rules.defaults)
    if changed:
        draft.end_generation("drained", GenerationReason.EDITED, Message.EDITED.text(stage=live.stage if live else ""))
    return True


def _has_come(draft: Draft, run: VideoTrainingRun) -> bool:
    """Nothing runs by what was edited, nothing was trained yet, or a checkpoint is complete since it was seen."""
    live = draft.live
    if live is None or _hash_of(run, live.stage) == _hash_of_stage(draft, live.stage):
        return True
    facts = live.progress
    if facts is None or facts.first_step_at is None:
        return True
    draft.confirmed(_DECISION)
    since = (draft.before.unconfirmed or {}).get(_DECISION, draft.now)
    return any(point.committed_at > since for point in facts.saved)


def _hash_of(run: VideoTrainingRun, stage: str) -> str:
    return next(config.hash() for config in stage_configs(run) if config.stage.name == stage)


def _hash_of_stage(draft: Draft, name: str) -> str:
    return next(stage.config_hash for stage in draft.status.stages if stage.name == name)
