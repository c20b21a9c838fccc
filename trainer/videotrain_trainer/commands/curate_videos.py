"""`videotrain-trainer curate run`: raw videos to a curated set, on this machine or in an existing Ray cluster."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from videotrain_api.resource.sources import SourceForm
from videotrain_api.resource.stages import UnitEngine
from videotrain_trainer.errors import ConfigError

if TYPE_CHECKING:
    from videotrain_api.records import TrainerRecord
    from videotrain_trainer.curation.work import CurateWork
    from videotrain_trainer.storage import ObjectStore

GRACE_SECONDS = 60
"""After Ctrl-C: twice the time that videos under way may take."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.description = (
        "Curate raw videos as a stage of a run does. Given again it goes on where it was, also with the other engine. "
        "The nodes of a Ray cluster need this version of the trainer, and credentials of their own for the object "
        "store; RAY_AUTH_TOKEN is the cluster's token, if it has one."
    )
    parser.add_argument(
        "videos", help="folder of raw videos, or what --form says: a path, file://, s3:// or package:// URI"
    )
    parser.add_argument("output", help="prefix of the curated set: a path, file:// or s3:// URI")
    parser.add_argument(
        "--form",
        choices=[form for form in get_args(SourceForm) if form != "latents"],
        default="folder",
        help="what lies there, as in spec.dataset.sources (folder); in other forms names begin with `videos/`",
    )
    parser.add_argument("--task", type=Path, metavar="FILE", help="YAML of `curate` as in a manifest")
    parser.add_argument(
        "--captions", metavar="URI", help="table of captions, as spec.dataset.captionTable, or its path"
    )
    parser.add_argument("--engine", choices=get_args(UnitEngine), help="instead of that of --task")
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster: ray://host:port or host:port")


def run(options: argparse.Namespace) -> int:
    """Curate, and say what was kept.

    Raises:
        ConfigError: an option does not fit.
    """
    from videotrain_api.resource.trainrun import Storage
    from videotrain_trainer.curation import captions
    from videotrain_trainer.curation.publish import publish
    from videotrain_trainer.curation.scores import table as scores
    from videotrain_trainer.curation.work import CurateWork, decoders, find_ranges
    from videotrain_trainer.engines.interface import Member
    from videotrain_trainer.engines.local import LocalRun
    from videotrain_trainer.engines.ray_node import Cluster
    from videotrain_trainer.engines.ray_run import RayRun
    from videotrain_trainer.evaluation.videos import uri_of
    from videotrain_trainer.models.image_scorer import open_image_model
    from videotrain_trainer.storage import ObjectStore
    from videotrain_trainer.worker.stage_reporter import StageReporter

    task = _task(options)
    scores.check(task)
    if task.captions is not None:
        captions.check(task.captions)
    storage, output = Storage(uri="s3://from-the-environment"), uri_of(options.output)
    work = CurateWork(_dataset(options), storage, output, task, open_image_model)
    store, shown, leave = ObjectStore.for_storage(storage), _Shown(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    generation = _next_generation(store, output)
    with tempfile.TemporaryDirectory(prefix="vt-curate-") as scratch:
        member = Member(
            prefix=output,
            generation=generation,
            rank=0,
            size=1,
            saved_step=0,
            grace_seconds=GRACE_SECONDS,
            asked_to_leave=leave.is_set,
            reporter=StageReporter(sink=shown, generation=generation, stage="curate", config_hash=""),
            scratch=Path(scratch),
        )
        ranges = find_ranges(work)
        engine: LocalRun | RayRun
        if task.engine == "ray":
            engine = RayRun(member, store, work, ranges, Cluster(options.address, ""))
        else:
            engine = LocalRun(member, store, work, ranges, decoders())
        if not engine.run():
            sys.stdout.write(f"{output}: left before all was done; give the command again to go on\n")
            return 128 + signal.SIGTERM
        if not publish(member, store, work, engine.board.results(engine.names())):
            return 128 + signal.SIGTERM
    return _told(store, work)


def _task(options: argparse.Namespace) -> Any:
    import yaml
    from pydantic import ValidationError

    from videotrain_api.resource.stages import CurateTask

    try:
        fields = yaml.safe_load(options.task.read_text(encoding="utf-8")) if options.task else {}
        task = CurateTask.model_validate(fields or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"--task {options.task}: {error}") from error
    if options.engine:
        task = task.model_copy(update={"engine": options.engine})
    if (task.engine == "ray") != (options.address is not None):
        raise ConfigError(f"--address: engine is {task.engine}; engine ray takes the address of a cluster, local none")
    return task


def _dataset(options: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from videotrain_api.resource.trainrun import Dataset
    from videotrain_trainer.evaluation.videos import uri_of

    fields: dict[str, Any] = {"captionTable": options.captions and uri_of(options.captions)}
    videos = uri_of(options.videos)
    if options.form == "folder":
        fields["videos"] = videos
    else:
        fields["sources"] = [{"name": "videos", "form": options.form, "uri": videos}]
    try:
        return Dataset.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"videos {options.videos}, --form {options.form}: {error}") from error


def _next_generation(store: ObjectStore, output: str) -> int:
    return 1 + max((int(folder[1:]) for folder in store.folders(f"{output}/progress")), default=0)


def _told(store: ObjectStore, work: CurateWork) -> int:
    from videotrain_api.storage import layout
    from videotrain_trainer.checksums import read_checked, unsealed_json

    report = read_checked(store, layout.drop_report(work.output), unsealed_json)
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["counts"].items()) or "nothing"
    sys.stdout.write(f"{work.output}: {report['clips']} clips of {report['videos']} videos; dropped: {reasons}\n")
    return 0


class _Shown:
    """Shows records as lines on standard error, one per tenth of the work."""

    def __init__(self) -> None:
        self._total, self._tenth = 0, 0

    def write(self, record: TrainerRecord) -> None:
        if record.kind == "started":
            self._total = record.total_steps
        elif record.kind == "phase" and record.phase == "list":
            self._total = record.total
        elif record.kind == "step" and 10 * record.step // max(1, self._total) > self._tenth:
            self._tenth = 10 * record.step // self._total
            sys.stderr.write(f"{record.step} of {self._total} steps, each up to 16 MiB of a video\n")
