"""When a status is worth a write: at once if a fact changed, now and then if only numbers moved."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from videotrain_api.reasons import Reason
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import Metadata, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Condition

WORDS_SECONDS: Final = 10.0
"""How far words may lag behind, such as "3 of at least 8 pods are ready", whose pods come one after another."""
BEGIN_SECONDS: Final = 3.0
"""How far may lag behind that a run was accepted and that its world begins. Whoever leads next finds both again, in the
manifest and in the published roster. Waiting makes one write of both, and of the first step if that comes soon."""
CROWDED_BEGIN_SECONDS: Final = 60.0
"""The same while other runs wait for a pass or for a request, and of a first step, too, which agents tell again: what
others wait for goes before what people read."""
_WORDS: Final = ("phase", "startTime", "activeSince")
"""Derived from conditions and pods at each look."""
PROGRESS_SECONDS: Final = 60.0
"""How far the stored step counter may lag behind; /metrics and the agents have it by the second."""
COST_SECONDS: Final = 600.0
"""How far the stored bill may lag behind while nothing else happens; it is recomputed from facts, never added up."""
_NUMBERS: Final = ("columns", "cost", "observedAt", "throughput", "step", "progress", "recentEvents")
_STAGE_NUMBERS: Final = ("step", "savedStep")
_BEGIN: Final = (
    *("configMap", "generation", "generations", "ledger", "nodes", "observedGeneration", "stage", "stages"),
    "conditions",
)
_WHILE_BEGINNING: Final = {
    Condition.ACCEPTED: (Reason.ACCEPTED,),
    Condition.SCHEDULED: (Reason.WAITING_FOR_PODS, Reason.PODS_READY),
    Condition.RUNNING: (Reason.NO_WORLD,),
    Condition.BUDGET_OK: (Reason.NO_LIMIT, Reason.WITHIN_BUDGET),
}
"""Conditions of a run that begins without any trouble, and their reasons."""
_WITH_FIRST_STEP: Final = _WHILE_BEGINNING | {
    Condition.RUNNING: (Reason.NO_WORLD, Reason.STEPS_ADVANCE),
    Condition.PROGRESS_OBSERVED: (Reason.STEPS_ADVANCE,),
}
"""The same once it has done a step."""
_PROGRESS_FACTS: Final = ("generation", "stage", "state", "firstStepAt", "endedAt", "exit", "totalSteps")


class Memory:
    """What passes over one run remember of each other: the status that was computed and not written.

    The next pass goes on from it, so nothing is lost by writing less; after a restart it goes on from the stored one,
    from which the same is computed again.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, crowded: Callable[[], bool] = lambda: False
    ) -> None:
        """Begin with a status that counts as just written: taking over a run writes nothing.

        Args:
            monotonic: the clock by which a status grows old, seconds.
            crowded: tells whether other runs wait for a pass or for a request.
        """
        self._monotonic, self._crowded = monotonic, crowded
        self._written_at = monotonic()
        self._version = ""
        self._identity: tuple[object, object] = (None, None)
        self._current = ""
        self._beginning_since: float | None = None
        self._status: Json | None = None
        self._written: tuple[str, Json] | None = None
        self._spec: tuple[object, VideoTrainingRunSpec] | None = None
        self.look_seconds: float | None = None
        """When to look again for the sake of words that the last pass left unwritten."""

    @property
    def is_new(self) -> bool:
        """No pass is over."""
        return self._status is None

    def parse(self, run: Json) -> VideoTrainingRun:
        """The run as a model; its spec is parsed once per uid and generation.

        Raises:
            ManifestError: it is not valid.
        """
        head = run["metadata"]
        identity = (head["uid"], head.get("generation"))
        if self._spec is None or self._spec[0] != identity:
            self._spec = (identity, VideoTrainingRun.from_wire(run).spec)
        metadata = Metadata.from_wire(head)
        return VideoTrainingRun.model_construct(metadata=metadata, spec=self._spec[1], status=run.get("status"))

    def with_unwritten_status(self, run: Json) -> Json:
        """The run with the newest computed status, if nobody has written another one since. Its spec may be another."""
        self._current = run["metadata"].get("resourceVersion", "")
        untouched = self._current == self._version or _identity(run) == self._identity
        if self._status is None or not untouched:
            return run
        return run | {"status": self._status}

    def due(self, stored: Json, wanted: Json) -> bool:
        """Whether to write `wanted` over `stored` now; sets `look_seconds`."""
        self.look_seconds = None
        if wanted == stored:
            return False
        # What was written and not touched since counts as it was meant: an older CRD drops fields it does not have.
        if self._written is not None and self._written[0] == self._current:
            stored = self._written[1]
        now = self._monotonic()
        if facts(wanted) != facts(stored):
            crowded = self._crowded()
            if not _only_begins(stored, wanted, with_first_step=crowded):
                return True
            self._beginning_since = now if self._beginning_since is None else self._beginning_since
            lag = CROWDED_BEGIN_SECONDS if crowded else BEGIN_SECONDS
            self.look_seconds = max(0.0, self._beginning_since + lag - now)
            return self.look_seconds == 0.0
        age = now - self._written_at
        if _words(wanted) != _words(stored):
            self.look_seconds = max(0.0, WORDS_SECONDS - age)
            return age >= WORDS_SECONDS
        return age >= COST_SECONDS or (age >= PROGRESS_SECONDS and _progress(wanted) != _progress(stored))

    def keep(self, run: Json, status: Json, *, written: bool) -> None:
        """A pass is over.

        Args:
            run: the run as it is stored now.
            status: what the pass computed.
            written: it was written.
        """
        self._version = run["metadata"].get("resourceVersion", "")
        self._identity = _identity(run)
        self._status = status
        if written:
            self._written = (self._version, status)
            self._written_at = self._monotonic()
            self._beginning_since = None


def _identity(run: Json) -> tuple[object, object]:
    """Which run it is, and the status that it has."""
    return run["metadata"]["uid"], run.get("status")


def _only_begins(stored: Json, wanted: Json, *, with_first_step: bool) -> bool:
    """The facts that are new are that the run is accepted, that a world is published, or both, and all goes well.

    Args:
        stored: status.
        wanted: the new one.
        with_first_step: the published world may have done its first step.
    """
    before, after = facts(RunStatus().to_wire() | stored), facts(wanted)
    if _without(before, _BEGIN) != _without(after, _BEGIN):
        return False
    known, worlds = before["generations"], after["generations"]
    edited = stored.get("observedGeneration") not in (None, wanted.get("observedGeneration"))
    if edited or wanted.get("configMap") is None or worlds[: len(known)] != known or len(worlds) > len(known) + 1:
        return False
    done = [stage.get("state") not in ("Pending", "Running") for stage in before["stages"]]
    if [stage.get("state") not in ("Pending", "Running") for stage in after["stages"]][: len(done)] != done:
        return False
    if any("endCause" in world or not _goes_well(world, with_first_step) for world in worlds[len(known) :]):
        return False
    old = before["conditions"]
    new = [item for item in after["conditions"] if item not in old]
    reasons = _WITH_FIRST_STEP if with_first_step else _WHILE_BEGINNING
    return all(item.get("reason") in reasons.get(item.get("type"), ()) for item in new) and (
        {item.get("type") for item in old} <= {item.get("type") for item in after["conditions"]}
    )


def _goes_well(world: Json, with_first_step: bool) -> bool:
    progress = world.get("progress")
    return progress is None or (
        with_first_step and progress.get("state") == "running" and not progress.keys() & {"endedAt", "exit"}
    )


def facts(status: Json) -> Json:
    """A status without what moves with time alone, without words, and without the news that a world is on its way."""
    kept = _without(status, (*_NUMBERS, *_WORDS))
    conditions = [item for item in status.get("conditions") or [] if not _says_starting(item)]
    kept["conditions"] = [_without(item, ("message",)) for item in conditions]
    kept["nodes"] = {key: value for key, value in (status.get("nodes") or {}).items() if key != "ready"}
    kept["stages"] = [_without(stage, _STAGE_NUMBERS) for stage in status.get("stages") or []]
    kept["generations"] = [_generation(item) for item in status.get("generations") or []]
    return kept


def _generation(item: Json) -> Json:
    progress = item.get("progress")
    if not progress:
        return item
    if progress.get("state") in ("starting", "running") and "firstStepAt" not in progress:
        return _without(item, ("progress",))
    return item | {"progress": {key: progress[key] for key in _PROGRESS_FACTS if key in progress}}


def _without(item: Json, keys: tuple[str, ...]) -> Json:
    return {key: value for key, value in item.items() if key not in keys}


def _says_starting(condition: Json) -> bool:
    return condition.get("type") == Condition.PROGRESS_OBSERVED and condition.get("reason") == Reason.STARTING


def _words(status: Json) -> list[object]:
    messages = [(item.get("type"), item.get("message")) for item in status.get("conditions") or []]
    return [*messages, *(status.get(key) for key in _WORDS)]


def _progress(status: Json) -> tuple[object, ...]:
    return status.get("step"), status.get("progress"), [stage.get("savedStep") for stage in status.get("stages") or []]
