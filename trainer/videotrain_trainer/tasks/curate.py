"""The curate stage: raw videos to normalised clips, a manifest and a drop report.

A unit is one raw video, so a restarted stage of any world size goes on where it was; rank 0 puts the results together.
"""

from __future__ import annotations

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import DropReport
from videotrain_trainer.checksums import read_checked, unsealed_json
from videotrain_trainer.curation import captions
from videotrain_trainer.curation.publish import publish, tell
from videotrain_trainer.curation.scores import table as scores
from videotrain_trainer.curation.work import CurateWork, decoders, find_ranges
from videotrain_trainer.engines.board import wait_for
from videotrain_trainer.engines.choice import engine_of
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.image_scorer import open_image_model
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    """Curate the raw videos of the dataset.

    Raises:
        DataError: there is no video, or nothing is kept.
    """
    config, task = context.config, context.config.stage.curate
    if task is None or not config.dataset.raw:
        raise ConfigError(f"stage {config.stage.name!r}: curate and spec.dataset.videos or sources must be set")
    scores.check(task)
    if task.captions is not None:
        captions.check(task.captions)
    member, store = Member.of(context), ObjectStore.for_storage(config.storage)
    store.check()
    work = CurateWork(config.dataset, config.storage, config.paths.output, task, open_image_model)
    engine = engine_of(task.engine, context, store, work, find_ranges(work), decoders())
    finished = engine.run()
    if finished and member.rank == 0:
        finished = publish(member, store, work, engine.board.results(engine.names()))
    if not (finished and wait_for(member, store, layout.clip_manifest(config.paths.output))):
        return "drained"
    if member.rank != 0:
        uri = layout.drop_report(config.paths.output)
        tell(member, read_checked(store, uri, lambda data: DropReport.from_wire(unsealed_json(data))))
    return "completed"
