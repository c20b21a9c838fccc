"""Bills that outlive their runs: config maps in the operator's own namespace, one for each run.

Everything that a run owns goes with it, and a namespace takes all that is in it. The operator has no credentials of any
run's object store, so what it keeps, it keeps where it lives; `bill_copies` brings it to a store of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import Final, Protocol

from videotrain_api.billing.document import RunBill, bill_of, read_bill, sealed
from videotrain_api.cost.storage import estimates_of
from videotrain_api.money import parse_micros
from videotrain_api.render.names import bill_name
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import BILL_KEY, FIELD_MANAGER, KIND, LABEL_BILL, LABEL_BILL_OPEN, LABEL_TEAM, LEDGER_KEY
from videotrain_operator.accounting.stored_ledger import read_ledger
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.cluster.podview import gpu_resources, pod_view
from videotrain_operator.manager.bill_copies import BillCopies
from videotrain_operator.planner.observed import Observed
from videotrain_operator.planner.plan import settle_gone

KEEP_SECONDS: Final = 3600.0
"""A bill that grows is kept anew after so long at the latest, so that no more is lost if a run goes while no operator
looks."""
SOON_SECONDS: Final = 60.0
"""It is kept first after so long, for a burst need not wait for bills of next to nothing, and then whenever the run is
twice as old as it was."""
LEAVE_SECONDS: Final = 600.0
"""So long the pods of a run that is gone may take to go, and are billed."""
LOOK_SECONDS: Final = 1.0
PAUSES: Final = (1.0, 5.0, 30.0, 120.0)
"""Seconds between attempts to write a last bill."""
WRITERS: Final = 4
"""Bills that are written at the same time."""
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What is needed of the operator's client."""

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """See KubeClient.get."""

    async def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Json]:
        """See KubeClient.list."""

    async def list_page(self, kind: str, namespace: str = "", **query: str) -> Json:
        """See KubeClient.list_page."""

    async def apply(self, manifest: Json, manager: str, *, force: bool = True) -> Json:
        """See KubeClient.apply."""


@dataclass(frozen=True)
class LastSeen:
    """A run with its status, and the config map with its ledger, after a pass."""

    run: Json
    ledger: Json | None
    departed: dict[str, tuple[Json, datetime]] = field(default_factory=dict)
    """By uid its pods that went while nobody noted it, as they were, and when that was."""


@dataclass(frozen=True)
class _Kept:
    total_micros: int
    closed: bool
    at: datetime


class BillKeeper:
    """Keeps a bill a minute after it began, as it grows, and when it can change no more, which is the last time."""

    def __init__(
        self,
        writer: Writer,
        namespace: str,
        now: Callable[[], datetime],
        on_kept: Callable[[RunBill], object] = lambda _: None,
        copies: BillCopies | None = None,
    ) -> None:
        """Begin with nothing kept; `take_over` finds what an earlier process has kept.

        Args:
            writer: reads and writes config maps.
            namespace: where they are.
            now: tells the time.
            on_kept: told of each bill that was written.
            copies: brings them to an object store; there are none if None.
        """
        self._on_kept, self._copies = on_kept, copies
        self._writer, self._namespace, self._now = writer, namespace, now
        self._kept: dict[str, _Kept] = {}
        self._writing: set[str] = set()
        self._closing: set[str] = set()
        self._turns = asyncio.Semaphore(WRITERS)

    async def kept(self) -> list[Json]:
        """The config maps with all bills that are kept."""
        return await self._writer.list("ConfigMap", self._namespace, LABEL_BILL)

    async def copy(self) -> None:
        """Bring bills to the object store, if there is one, until cancelled."""
        if self._copies is not None:
            await self._copies.run()

    def due(self, run: Json) -> bool:
        """Whether the bill of a run, which has its status, must be kept now."""
        uid, status = run["metadata"]["uid"], run.get("status") or {}
        cost, kept = status.get("cost"), self._kept.get(uid)
        if not cost or not cost.get("totalMicros") or uid in self._writing or (kept is not None and kept.closed):
            return False
        if status.get("completionTime") and stored_rate(cost.get("ratePerHour") or 0, run["metadata"]["name"]) == 0:
            return True
        made = run["metadata"]["creationTimestamp"]
        if kept is not None and kept.total_micros == cost["totalMicros"]:
            return False  # suspended, or waiting for pods
        if kept is None:
            since, age = datetime.fromisoformat(status.get("activeSince") or made), timedelta(0)
        else:
            since, age = kept.at, kept.at - datetime.fromisoformat(made)
        return self._now() - since >= timedelta(seconds=min(KEEP_SECONDS, max(SOON_SECONDS, age.total_seconds())))

    async def take_over(self, knows: Callable[[RunBill], bool]) -> None:
        """Go on with the open bills of whoever led before; those of runs that are gone are closed as they are.

        Nobody knows how long the pods of these went on, so such bills are estimates.

        Args:
            knows: whether a run is there, or is nobody's here.
        """
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                stored = await self._writer.list("ConfigMap", self._namespace, LABEL_BILL_OPEN)
                break
            except Exception as error:
                _log.warning("open bills were not read, next try in %s s: %s", pause, error)
                await asyncio.sleep(pause)
        for body in stored:
            try:
                bill = read_bill(json.loads(body["data"][BILL_KEY]))
                if knows(bill):
                    self._kept.setdefault(
                        bill.uid, _Kept(bill.total_micros, closed=False, at=bill.as_of or self._now())
                    )
                elif bill.uid not in self._closing and await self._is_gone(bill):
                    await self._write_at_last(bill.model_copy(update={"closed": True, "estimated": True}))
                    self._kept.pop(bill.uid, None)
            except Exception as error:  # the next leader tries again
                _log.warning("config map %s is left as it is: %s", body["metadata"]["name"], error)

    async def _is_gone(self, bill: RunBill) -> bool:
        """By the server's own word, for a closed bill stays closed; a list, since it may read no single run."""
        page = await self._writer.list_page(KIND, bill.namespace, fieldSelector=f"metadata.name={bill.run}")
        return all(run["metadata"]["uid"] != bill.uid for run in page["items"])

    async def keep(self, seen: LastSeen) -> None:
        """Write the bill of a run up to its newest pass, unless a closed one is there."""
        uid = seen.run["metadata"]["uid"]
        if uid in self._writing:
            return
        self._writing.add(uid)
        try:
            await self._write(bill_of(seen.run, _ledger_of(seen), estimates_of(seen.run)))
        finally:
            self._writing.discard(uid)

    async def close(self, seen: LastSeen, pods: Callable[[], list[Json]], lives: Callable[[], bool]) -> None:
        """Write the last bill of a run that is gone, when its pods have gone, too.

        Args:
            seen: the run after its last pass.
            pods: tells its pods that are left.
            lives: whether the watch knows the run; a server that has just started may deny one that goes on.

        Raises:
            Exception: that kept the last bill from being written to the end.
        """
        uid = seen.run["metadata"]["uid"]
        self._closing.add(uid)
        try:
            await self._close(uid, seen, pods, lives)
        finally:
            self._closing.discard(uid)

    async def _close(self, uid: str, seen: LastSeen, pods: Callable[[], list[Json]], lives: Callable[[], bool]) -> None:
        ledger = _ledger_of(seen)
        noted = seen.departed if ledger is None else ledger["pods"]  # any other pod's bill is closed
        left = {pod: gone for pod, gone in seen.departed.items() if pod in noted}
        try:
            await self.keep(seen)  # whoever dies while pods go has this one
        except Exception as error:
            _log.warning("bill of run %s is not kept before its pods have gone: %s", uid, error)
        if uid in self._kept and self._kept[uid].closed:
            del self._kept[uid]
            return
        until = self._now() + timedelta(seconds=LEAVE_SECONDS)
        while ((present := pods()) or lives()) and self._now() < until:
            left |= {pod["metadata"]["uid"]: (pod, self._now()) for pod in present}
            await asyncio.sleep(LOOK_SECONDS)
        if lives():
            return
        bill = self._last(seen, [*left.values()])
        await self._write_at_last(None if bill is None else bill.model_copy(update={"closed": True}))
        self._kept.pop(uid, None)

    async def _write_at_last(self, bill: RunBill | None) -> None:
        """No pass comes after this one that would try again."""
        for pause in (*PAUSES, None):
            try:
                await self._write(bill)
            except Exception as error:
                if pause is None:
                    raise
                _log.warning("last bill of run %s: %s; tried again in %s s", bill and bill.uid, error, pause)
                await asyncio.sleep(pause)
            else:
                break

    def _last(self, seen: LastSeen, left: list[tuple[Json, datetime]]) -> RunBill | None:
        """A pod whose end nobody told held its node until it was there last."""
        resources, ledger = gpu_resources(seen.run), _ledger_of(seen)
        views = [(pod_view(pod, {}, resources), last) for pod, last in left]  # a bill asks of no node how it is
        departed = tuple(view if view.finished_at else replace(view, finished_at=last) for view, last in views)
        try:
            run = VideoTrainingRun.from_wire(seen.run)
        except ManifestError:
            return bill_of(seen.run, ledger)  # as far as it was counted
        observed = Observed(departed=departed, ledger=ledger, signing_key=b"")
        status, document = settle_gone(run, observed, self._now())
        settled = seen.run | {"status": status.to_wire()}
        bill = bill_of(settled, document, estimates_of(settled))
        guessed = any(view.finished_at is None for view, _ in views)
        return bill.model_copy(update={"estimated": True}) if bill is not None and guessed else bill

    async def _write(self, bill: RunBill | None) -> None:
        if bill is None or not bill.total_micros:
            return
        name = bill_name(bill.uid)
        async with self._turns:
            try:
                stored = await self._writer.get("ConfigMap", self._namespace, name)
            except NotFound:
                stored = {}
            if not stored.get("immutable"):
                await self._writer.apply(self._config_map(bill, stored), FIELD_MANAGER)
        closed = bill.closed or bool(stored.get("immutable"))
        self._on_kept(bill)
        if self._copies is not None:
            self._copies.note(bill)
        self._kept[bill.uid] = _Kept(bill.total_micros, closed, self._now())
        _log.info("run=%s/%s bill=%s closed=%s", bill.namespace, bill.run, bill.total, closed)

    def _config_map(self, bill: RunBill, stored: Json) -> Json:
        labels = {LABEL_BILL: bill.uid, "app.kubernetes.io/managed-by": FIELD_MANAGER}
        if not bill.closed:
            labels[LABEL_BILL_OPEN] = "true"
        head: Json = {"name": bill_name(bill.uid), "namespace": self._namespace, "labels": labels}
        if bill.team:
            labels[LABEL_TEAM] = bill.team
        if stored:
            head["resourceVersion"] = stored["metadata"]["resourceVersion"]
        text = json.dumps(sealed(bill), separators=(",", ":"), ensure_ascii=False)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": head,
            "immutable": bill.closed,
            "data": {BILL_KEY: text},
        }


def stored_rate(amount: object, whose: str) -> int:
    """Micros per hour of a stored status; 0, and a line in the log, for what nobody can read as an amount.

    Args:
        amount: as it is stored, by whoever wrote it.
        whose: the run, for the log.
    """
    try:
        return parse_micros(str(amount))
    except ValueError as error:
        _log.warning("run=%s status.cost.ratePerHour counts as 0: %s", whose, error)
        return 0


def _ledger_of(seen: LastSeen) -> Json | None:
    text = ((seen.ledger or {}).get("data") or {}).get(LEDGER_KEY)
    return None if text is None else read_ledger(text)


async def tell_trouble(work: Awaitable[None], run: Json, report: Callable[[Exception], None]) -> None:
    """Await the keeping of a bill; what goes wrong is reported, and the next pass tries again."""
    try:
        await work
    except Exception as error:
        head = run["metadata"]
        _log.warning("run=%s/%s bill was not kept: %s", head["namespace"], head["name"], error)
        report(error)
