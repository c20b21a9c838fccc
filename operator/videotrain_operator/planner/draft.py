"""One pass in the making: what was seen, and what has been decided so far.

`plan()` hands one of these from step to step. Each step reads it and adds to it; nothing that was passed in is changed.
What searches or counts is a method, never a property, so that nobody calls it for every pod without noticing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import Roster
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import NodeBounds, Stage, node_counts
from videotrain_api.resource.status import GenerationStatus, RunStatus, StageStatus
from videotrain_api.resource.stored_size import cut
from videotrain_api.resource.trainrun import VideoTrainingRun, VideoTrainingRunSpec, node_bounds, pool_name, pool_of
from videotrain_api.storage import layout
from videotrain_api.vocabulary import Condition
from videotrain_operator.accounting.stored_ledger import Awaited
from videotrain_operator.accounting.training_budgets import CONFIRM_SECONDS
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.decision import Deletion, Event, Plan
from videotrain_operator.planner.observed import Observed, PodView

LONGEST_MESSAGE: Final = 1000
"""Bytes of a message for people, as they are stored."""
_OVER: Final = (Condition.COMPLETE.value, Condition.FAILED.value)
EndCause = Literal["completed", "drained", "application", "infrastructure", "preemption", "hang"]


@dataclass
class Draft:
    """Everything a step needs. `status` is replaced, never changed in place."""

    run: VideoTrainingRun
    """The run as it is trained: the frozen spec with the live fields of the present one."""
    observed: Observed
    now: datetime
    rules: ClusterRules
    before: RunStatus
    """Status as it was read."""
    status: RunStatus
    """Status as it will be written."""
    unreadable: tuple[str, ...] = ()
    """Fields of the stored status that could not be read and were left out."""
    config_data: dict[str, str] | None = None
    """Data of the frozen config map, if it has to be made and can be made from the present spec."""
    apply: list[Manifest] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    requeue_seconds: float | None = None
    delete_run: bool = False
    ended: bool = False
    """This pass ended a generation; the next one begins in the next pass, when the end is on record."""
    published: Roster | None = None
    """Roster that this pass publishes."""
    awaited: dict[int, Awaited] = field(default_factory=dict)
    """Pods, by number, that were made and are not in the ledger yet."""
    suspend_reason: str | None = None
    """Why the run holds no nodes, if it should not."""
    edited: VideoTrainingRun | None = None
    """The run with an edit of its stages that is waiting to be taken."""
    edit_refused: str = ""
    """Why an edit of stages is not taken; empty if there is none, or nothing is against it."""
    held: bool = False
    """The present spec cannot be run: the world stays as it is."""
    smallest: bool = False
    """The budget allows only the smallest world."""

    @property
    def spec(self) -> VideoTrainingRunSpec:
        """Desired state: what is trained, see `run`."""
        return self.run.spec

    @property
    def live(self) -> GenerationStatus | None:
        """The generation that runs, if one does."""
        last = self.last
        return last if last is not None and last.end_cause is None else None

    @property
    def last(self) -> GenerationStatus | None:
        """The newest generation, running or ended."""
        return self.status.generations[-1] if self.status.generations else None

    def stage(self) -> StageStatus | None:
        """The stage that is worked on; None when all are done or the run was refused."""
        return next((stage for stage in self.status.stages if stage.state in ("Pending", "Running")), None)

    def output_of(self, stage: StageStatus) -> str:
        """URI of what a stage makes."""
        prefix = layout.stage_prefix(self.spec.storage.uri, self.run.metadata.name, stage.name)
        return layout.stage_output(prefix, stage.task)

    def finished(self) -> bool:
        """The run succeeded or failed."""
        return any(c.status == "True" and c.type in _OVER for c in self.status.conditions)

    def failed(self) -> bool:
        """The run failed."""
        return self.is_true(Condition.FAILED)

    def being_deleted(self) -> bool:
        """Somebody deleted the run, or its namespace."""
        return bool((self.run.metadata.model_extra or {}).get("deletionTimestamp"))

    def releases_all(self) -> bool:
        """No pod is wanted any more: the run is over, suspended, or being deleted."""
        return self.finished() or self.suspend_reason is not None or self.being_deleted()

    def present(self) -> Stage | None:
        """The stage that is worked on, as the spec has it."""
        current = self.stage()
        name = current.name if current else None
        return next((stage for stage in self.spec.stages if stage.name == name), None)

    def bounds(self) -> NodeBounds:
        """Node bounds of the current stage as they are now."""
        return node_bounds(self.run, self.present())

    def pool(self) -> Pool:
        """Pool of the current stage."""
        return pool_of(self.run, self.present())

    def in_pool(self, pods: Iterable[PodView]) -> list[PodView]:
        """The pods that were made for the current stage's pool; the others only have to go."""
        mark = self.pool_mark()
        return [pod for pod in pods if pod.pool == mark]

    def pool_mark(self) -> str | None:
        """By which pods of the current stage's pool are told, see `pool_name`."""
        return pool_name(self.run, self.present())

    def price(self, pool: Pool) -> str:
        """What pods of a pool are billed at: `PRICE CURRENCY` of an hour of a GPU, or of a node without GPUs."""
        return f"{pool.price} {self.spec.pool.currency}"

    def sizes(self) -> Sequence[int]:
        """World sizes in nodes that may be used now, ascending."""
        sizes = node_counts(self.bounds())
        return sizes[:1] if self.smallest else sizes

    def fit(self, pods: int) -> int | None:
        """The largest world that so many pods can make."""
        return next((size for size in reversed(self.sizes()) if size <= pods), None)

    def is_true(self, kind: Condition) -> bool:
        """Whether a condition holds."""
        return any(c.type == kind and c.status == "True" for c in self.status.conditions)

    @cached_property
    def pods(self) -> dict[str, PodView]:
        """Observed pods by name."""
        return {pod.name: pod for pod in self.observed.pods}

    @property
    def queued(self) -> bool:
        """Pods are admitted by a queue."""
        return self.spec.queue is not None

    def in_bounds(self, pods: Iterable[PodView]) -> list[PodView]:
        """The pods that the largest world is made of. A queue's stand-ins have higher indexes."""
        sizes = self.sizes()
        return [pod for pod in pods if self.queued or pod.index < sizes[-1]] if sizes else []

    def update(self, **changes: Any) -> None:
        """Replace fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def update_last(self, **changes: Any) -> None:
        """Replace fields of the newest generation."""
        *earlier, last = self.status.generations
        self.update(generations=[*earlier, last.model_copy(update=changes)])

    def update_stage(self, name: str, **changes: Any) -> None:
        """Replace fields of one stage."""
        stages = [s.model_copy(update=changes) if s.name == name else s for s in self.status.stages]
        self.update(stages=stages)

    def end_generation(self, cause: EndCause, reason: str, message: str) -> None:
        """Put on record that the running generation is over; the next pass acts on it."""
        self.update_last(end_cause=cause, end_reason=str(reason), end_message=cut(str(message), LONGEST_MESSAGE))
        self.ended = True
        self.look_again(0)

    def confirmed(self, decision: str) -> bool:
        """Whether what cannot be taken back may be decided: the time is sure, and a pass before came to the same.

        It is noted until a pass no longer asks; then the next has to be confirmed anew. So one wrong reading of a
        clock, of the API server's or an agent's, decides nothing.

        Args:
            decision: what would be decided, such as the reason that it would have.
        """
        since = (self.before.unconfirmed or {}).get(str(decision))
        if self.observed.time_untrusted or since is None or self.now < since:
            since = self.now
        self.update(unconfirmed=(self.status.unconfirmed or {}) | {str(decision): since})
        left = CONFIRM_SECONDS - (self.now - since).total_seconds()
        if left > 0:
            self.look_again(left)
        return left <= 0

    def tell(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Emit an event after the status was written."""
        self.events.append(Event(type=type_, reason=str(reason), message=cut(str(message), LONGEST_MESSAGE)))

    def look_again(self, seconds: float) -> None:
        """Ask for another pass after at most so many seconds."""
        seconds = max(0.0, seconds)
        self.requeue_seconds = seconds if self.requeue_seconds is None else min(seconds, self.requeue_seconds)

    def plan(self) -> Plan:
        """The decisions of this pass as the planner's output."""
        return Plan(
            apply=tuple(self.apply),
            delete=tuple(self.delete),
            status=self.status,
            events=tuple(self.events),
            requeue_seconds=self.requeue_seconds,
            delete_run=self.delete_run,
            unreadable=(*(f"status.{path}" for path in self.unreadable), *self.observed.unreadable),
            roster=self.published or self.observed.roster,
        )
