"""Freezing the configuration of a new run, and telling about edits of a frozen one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from videotrain_api.config.edits import edited_spec
from videotrain_api.frozen_config import config_data, data_hash, problems_in, stage_configs
from videotrain_api.reasons import Message, Reason
from videotrain_api.render.defaults import default_problems, with_defaults
from videotrain_api.render.names import config_map_name
from videotrain_api.render.pod_policy import pod_problems
from videotrain_api.resource.status import StageStatus
from videotrain_api.resource.stored_size import cut
from videotrain_api.resource.trainrun import VideoTrainingRunSpec
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import Condition, Phase
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import LONGEST_MESSAGE, Draft
from videotrain_operator.planner.edits import edit_error, freeze_anew, note_edit

_BARRED: Final = (Reason.POD_NOT_ALLOWED, Reason.DEFAULT_ENFORCED)
"""Why a run waits that those who run the cluster do not let begin."""


def accept(draft: Draft, present: VideoTrainingRunSpec) -> bool:
    """Freeze the configuration of a new run; tell about edits of a frozen one.

    Args:
        draft: the pass.
        present: the spec as it stands now.

    Returns:
        False if the run cannot be accepted.
    """
    if draft.finished():
        return True
    if draft.status.config_map is None:
        return _freeze(draft)
    _complete_stages(draft)
    if draft.status.config_map not in draft.observed.config_maps and not _restore(draft):
        return True
    if not _take_edits(draft, present):
        draft.held = True
        return True
    # Checked again only if the spec is not the one that was checked last: it is the costliest part of a pass.
    refused = any(c.type == Condition.ACCEPTED and c.status == "False" for c in draft.before.conditions)
    edited = refused or draft.before.observed_generation != (draft.run.metadata.generation or 0)
    if edited and (problems := problems_in(draft.run)):
        refuse(draft, ManifestError(list(problems)))
        draft.held = True
        return True
    if _begins_anew(draft) and _refused_by_cluster(draft):
        draft.held = True
        return True
    fields = type(present).model_fields.items()
    taken = draft.edited.spec if draft.edited is not None else draft.spec
    edits = [f"spec.{f.alias or name}" for name, f in fields if getattr(taken, name) != getattr(present, name)]
    if draft.edit_refused:
        message = Message.EDIT_REFUSED.text(why=draft.edit_refused)
        old = find_condition(draft, Condition.ACCEPTED)
        same = draft.before.observed_generation == (draft.run.metadata.generation or 0)
        if same and old is not None and old.reason == Reason.EDIT_REFUSED:
            message = old.message  # it may say how far the stage is
        else:
            draft.tell("Warning", Reason.EDIT_REFUSED, message)
        set_condition(draft, Condition.ACCEPTED, status=True, reason=Reason.EDIT_REFUSED, message=message)
    elif edits:
        message = Message.EDIT_IGNORED.text(fields=", ".join(edits))
        old = find_condition(draft, Condition.ACCEPTED)
        if old is None or old.message != message:
            draft.tell("Warning", Reason.EDIT_IGNORED, message)
        set_condition(draft, Condition.ACCEPTED, status=True, reason=Reason.EDIT_IGNORED, message=message)
    else:
        set_condition(draft, Condition.ACCEPTED, status=True, reason=Reason.ACCEPTED)
    return True


def _take_edits(draft: Draft, present: VideoTrainingRunSpec) -> bool:
    """Freeze the configuration anew if stages were edited and there is no pod; False if the edit holds the run.

    One that has pods takes it at a better moment, see `planner.edits`. One that lost them, and was not suspended for
    the edit, goes on as it was if it cannot be edited so.
    """
    edited = edited_spec(draft.spec, present)
    if edited == draft.spec:
        return True
    if draft.live is not None or draft.observed.pods:
        note_edit(draft, draft.run.model_copy(update={"spec": edited}))
        return True
    if draft.before.config_map is None:
        draft.look_again(0)  # the status was emptied: how far the stages are is known in the next pass
        return False
    refused = any(c.type == Condition.ACCEPTED and c.status == "False" for c in draft.before.conditions)
    deliberate = refused or draft.before.phase == Phase.SUSPENDED
    run = draft.run.model_copy(update={"spec": edited})
    error = edit_error(draft, run)
    if error is not None:
        if deliberate:
            refuse(draft, error)
        return not deliberate
    draft.run = run
    freeze_anew(draft, run)
    return True


def _begins_anew(draft: Draft) -> bool:
    """It has no pods and is to get some after a suspension; one that lost its pods goes on as it was accepted."""
    barred = any(c.type == Condition.ACCEPTED and c.reason in _BARRED for c in draft.before.conditions)
    rested = barred or draft.before.phase == Phase.SUSPENDED
    return rested and not draft.spec.suspend and not draft.observed.pods


def _refused_by_cluster(draft: Draft) -> bool:
    """Those who run the cluster forbid what the run would be."""
    if overridden := default_problems(draft.run, draft.rules.defaults):
        refuse(draft, ManifestError(overridden), Reason.DEFAULT_ENFORCED)
    elif forbidden := pod_problems(draft.run, draft.rules.pods):
        refuse(draft, ManifestError(forbidden), Reason.POD_NOT_ALLOWED)
    else:
        return False
    return True


def take_defaults(draft: Draft) -> None:
    """Lay the cluster's defaults below the run: the present ones, but those that it holds as long as it holds pods."""
    present = draft.rules.defaults
    if not draft.observed.pods and not draft.finished():
        draft.update(defaults=present.held())
    draft.rules = replace(draft.rules, defaults=present.holding(draft.status.defaults))
    draft.run = with_defaults(draft.run, draft.rules.defaults)


def restore_hashes(draft: Draft) -> None:
    """Take the hashes of the stages' configurations from what was frozen, whatever somebody wrote into the status.

    Workers refuse a roster that names another hash, for good. Where this version would freeze something else than the
    one that did, the status is all there is.
    """
    data = config_data(draft.run)
    if config_map_name(draft.run, data_hash(data)) != draft.status.config_map:
        return
    for config in stage_configs(draft.run):
        draft.update_stage(config.stage.name, config_hash=config.hash())


def refuse(draft: Draft, error: ManifestError, reason: Reason = Reason.INVALID) -> None:
    """Put on record why the manifest cannot be accepted."""
    old = find_condition(draft, Condition.ACCEPTED)
    message = str(error)
    if old is None or old.message != cut(message, LONGEST_MESSAGE):
        draft.tell("Warning", reason, message)
    set_condition(draft, Condition.ACCEPTED, status=False, reason=reason, message=message)


def _freeze(draft: Draft) -> bool:
    try:
        problems = problems_in(draft.run)
        if problems:
            raise ManifestError(list(problems))  # noqa: TRY301  one way out for both kinds of refusal
        data = config_data(draft.run)
    except ManifestError as error:
        refuse(draft, error)
        return False
    # A run that has pods was accepted, and its status was lost.
    if not draft.observed.pods and _refused_by_cluster(draft):
        return False
    draft.config_data = data
    stages = _pending_stages(draft)
    draft.update(config_map=config_map_name(draft.run, data_hash(data)), stages=stages)
    set_condition(draft, Condition.ACCEPTED, status=True, reason=Reason.ACCEPTED)
    return True


def _pending_stages(draft: Draft) -> list[StageStatus]:
    return [
        StageStatus(
            name=config.stage.name,
            task=config.stage.task,
            state="Pending",
            config_hash=config.hash(),
            total_steps=config.stage.total_steps,
        )
        for config in stage_configs(draft.run)
    ]


def _complete_stages(draft: Draft) -> None:
    """Where the stored status does not tell of every stage, tell of it anew; one before a stage that began is over."""
    known = {stage.name: stage for stage in draft.status.stages}
    if [stage.name for stage in draft.spec.stages] == list(known):
        return
    try:
        stages = [known.get(stage.name, stage) for stage in _pending_stages(draft)]
    except ManifestError:
        return  # told by whoever checks the spec
    begun = max((index for index, stage in enumerate(stages) if stage.state != "Pending"), default=0)
    passed = (stage.model_copy(update={"state": "Succeeded"}) for stage in stages[:begun])
    kept = [old if old.name in known else new for old, new in zip(stages[:begun], passed, strict=True)]
    draft.update(stages=[*kept, *stages[begun:]])


def _restore(draft: Draft) -> bool:
    """The config map was deleted by hand: make it again, if the present spec still gives the same."""
    try:
        data = config_data(draft.run)
    except ManifestError:
        data = {}
    if config_map_name(draft.run, data_hash(data)) == draft.status.config_map:
        draft.config_data = data
        return True

    message = Message.FROZEN_CONFIG_LOST.text(name=draft.status.config_map)
    if set_condition(draft, Condition.ACCEPTED, status=False, reason=Reason.FROZEN_CONFIG_LOST, message=message):
        draft.tell("Warning", Reason.FROZEN_CONFIG_LOST, message)
    return False
