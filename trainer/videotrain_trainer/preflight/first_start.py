"""The same checks in a run's first pod, in its first seconds: later stages cannot fail for what can be seen now."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Final

from pydantic import Field, TypeAdapter

from videotrain_api.checks import Finding, wrong
from videotrain_api.resource.trainrun import Metadata, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import ApiModel
from videotrain_api.storage import layout
from videotrain_trainer import __version__
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.preflight.packages import wanted_packages
from videotrain_trainer.preflight.refusing import refuse
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext

log = logging.getLogger(__name__)

_FINDINGS: Final = TypeAdapter(tuple[Finding, ...])


class RunChecks(ApiModel):
    """checks.json of a run: what was found, and of which frozen spec and image."""

    digest: str
    """SHA-256 of the spec and of what this image has for it, 16 hex digits."""
    findings: list[Finding] = Field(default_factory=list)


def check_run(context: StageContext, spec_file: Path) -> None:
    """Look at all that this stage and later ones read; once for a frozen spec and an image. Collective.

    Args:
        context: of the stage that begins.
        spec_file: the frozen spec in the pod; where there is none, nothing is looked at.

    Raises:
        TrainerError: something is wrong, so that this stage or a later one would fail.
    """
    found: tuple[Finding, ...] | None = None
    if context.world.rank == 0:
        found = _look(context, spec_file) if spec_file.is_file() else ()
    problems = WorldPeers().from_first(_FINDINGS, found)
    refuse(problems)


def _look(context: StageContext, spec_file: Path) -> tuple[Finding, ...]:
    """What is wrong; empty if this spec was looked at before by such an image and all was well."""
    data, config = spec_file.read_bytes(), context.config
    namespace, _, name = config.run.partition("/")
    spec = VideoTrainingRunSpec.from_wire(json.loads(data))
    run = VideoTrainingRun(metadata=Metadata(name=name, namespace=namespace), spec=spec)
    image = [__version__, *(f"{package.module} {package.there}" for package in wanted_packages(run))]
    digest = hashlib.sha256(data + "\n".join(image).encode()).hexdigest()[:16]
    store = ObjectStore.for_storage(config.storage)
    place = layout.run_checks(config.storage.uri, name)
    try:
        if RunChecks.model_validate_json(store.get(place)).digest == digest:
            return ()
    except ObjectMissing:
        pass
    except ValueError as error:
        log.warning("%s: not readable, so everything is looked at again: %s", place, error)
    # Here, since every generation comes by, and only the first one looks: models and data take seconds to import.
    from videotrain_trainer.preflight.inputs import InputCheck

    first = next(i for i, stage in enumerate(spec.stages) if stage.name == config.stage.name)
    found = []
    for finding in InputCheck(run, store, first).findings():
        log.log(logging.INFO if finding.verdict == "ok" else logging.WARNING, "%s: %s", finding.check, finding)
        found.append(finding)
    problems = wrong(found)
    if not problems:
        store.put(place, RunChecks(digest=digest, findings=found).model_dump_json(by_alias=True).encode())
    return tuple(problems)
