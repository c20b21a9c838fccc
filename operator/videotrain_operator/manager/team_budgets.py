"""Team budgets on the API server: what each run spent, from passes and kept bills, and the budgets' statuses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from videotrain_api import metrics as catalogue
from videotrain_api.billing.document import BillError, RunBill, counted_until, read_bill
from videotrain_api.budget_reasons import BudgetMessage, BudgetReason
from videotrain_api.money import MICROS, parse_micros
from videotrain_api.resource.stored_size import cut
from videotrain_api.resource.stored_status import read_budget_status, read_status
from videotrain_api.resource.training_budgets import ACTIONS, TrainingBudget, TrainingBudgetStatus
from videotrain_api.schema import Json, ManifestError
from videotrain_api.times import month_begin, month_name
from videotrain_api.vocabulary import BILL_KEY, BUDGET_KIND, LABEL_TEAM
from videotrain_operator.accounting.training_budgets import Account, judge, unjudged
from videotrain_operator.manager.bills import LEAVE_SECONDS, stored_rate
from videotrain_operator.planner.draft import LONGEST_MESSAGE
from videotrain_operator.telemetry import Sample, shown_amount

SETTLE_SECONDS: Final = 1.0
"""Least time between two looks at all budgets."""
LOOK_SECONDS: Final = 10.0
"""Between looks while no run tells anything: what nodes cost goes on."""
NUMBERS_SECONDS: Final = 60.0
"""How far the amounts in a status may lag behind while no rule is reached; /metrics has them by the second."""
FIRST_PASSES_SECONDS: Final = 120.0
"""So long a new leader waits for a pass over each run that holds nodes: what its status says may be hours old."""
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What is needed of a cluster."""

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """See Cluster.replace_status."""

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        """See Cluster.emit_event."""


def account_of_run(run: Json, until_saved_micros: int = 0) -> Account | None:
    """The account of a run with its status; None if it never held a node.

    Args:
        run: the VideoTrainingRun.
        until_saved_micros: see Account.
    """
    head, spec, status = run["metadata"], run.get("spec") or {}, read_status(run.get("status")).status
    if status.cost is None:
        return None
    priority = spec.get("priority")
    return Account(
        uid=head["uid"],
        namespace=head.get("namespace", "default"),
        name=head["name"],
        team=(head.get("labels") or {}).get(LABEL_TEAM, ""),
        currency=status.cost.currency,
        priority=priority if isinstance(priority, int) else 0,
        months={one.month: one.total_micros for one in status.cost.months},
        as_of=counted_until(status.cost, status),
        looked_at=status.observed_at,
        rate_micros_per_hour=stored_rate(status.cost.rate_per_hour, head["name"]),
        until_saved_micros=until_saved_micros,
    )


def account_of_bill(bill: RunBill) -> Account:
    """The account of a run that is gone."""
    return Account(
        uid=bill.uid,
        namespace=bill.namespace,
        name=bill.run,
        team=bill.team,
        currency=bill.currency,
        months={one.month: one.total_micros for one in bill.months},
        as_of=bill.as_of,
    )


class _Read(NamedTuple):
    """A stored budget as far as it can be read."""

    budget: TrainingBudget | None
    """None if nobody can read whom it covers."""
    reason: BudgetReason = BudgetReason.UNREADABLE
    """Of the condition, if there is a problem."""
    problem: str = ""
    """Why it cannot be judged; empty if it can."""


class BudgetKeeper:
    """Judges the team budgets while this process leads, and tells passes over runs which rules hold."""

    def __init__(
        self,
        writer: Writer,
        now: Callable[[], datetime],
        bodies: Callable[[], Iterable[Json]],
        runs: Callable[[], Iterable[Json]],
        holds_nodes: Callable[[str], bool],
        read_bills: Callable[[], Awaitable[Iterable[Json]]],
        *,
        namespaces: Collection[str] = (),
        known: Callable[[], bool] = lambda: True,
        time_untrusted: Callable[[], str] = lambda: "",
        on_change: Callable[[], object] = lambda: None,
        on_error: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        """Begin with nothing known; what every run spent is read once there is a budget.

        Args:
            writer: of statuses and events.
            now: tells the time.
            bodies: tells the TrainingBudgets as they are stored.
            runs: tells the runs as they are stored.
            holds_nodes: tells whether a run, by its uid, has a pod on a node now.
            read_bills: reads the config maps with kept bills.
            namespaces: that are served here; all if empty. A budget that covers others too is judged by nobody, since
                operators of other namespaces would write over each other's status.
            known: tells whether the TrainingBudgets were read at all.
            time_untrusted: tells why the clock may be wrong; then nothing is judged, since no month is known.
            on_change: told when other rules hold than before.
            on_error: told what kept a budget from being judged.
        """
        self._holds_nodes, self._known, self._on_error = holds_nodes, known, on_error
        self._writer, self._now, self._bodies, self._runs = writer, now, bodies, runs
        self._read_bills, self._time_untrusted, self._on_change = read_bills, time_untrusted, on_change
        self._served = frozenset(namespaces)
        self._woken = asyncio.Event()
        self._parsed: dict[tuple[str, str], _Read] = {}
        self._judged: dict[str, tuple[TrainingBudget, TrainingBudgetStatus]] = {}
        self._unjudged: dict[str, str] = {}
        """By uid, names of budgets that cannot be judged."""
        self.reset()

    def reset(self) -> None:
        """Forget what was known: somebody else may have led meanwhile."""
        self._accounts: dict[str, Account] | None = None
        self._early: dict[str, tuple[Json, int]] = {}
        """By uid: passes that were told before the accounts were read."""
        self._early_bills: dict[str, RunBill] = {}
        """By uid: bills that were closed before that."""
        self._holding: set[str] = set()
        """Uids of runs that the newest look saw with a pod on a node."""
        self._left_at: dict[str, datetime] = {}
        """By uid, when a look saw first that a run has none any more."""
        self._awaited: set[str] = set()
        self._begun: datetime | None = None
        self._written: dict[str, datetime] = {}
        self._forget_judged()

    def _forget_judged(self) -> None:
        self._judged.clear()
        self._unjudged.clear()

    def budgets(self) -> tuple[TrainingBudget, ...] | None:
        """Every budget of which can be read whom it covers, with the rules that its stored status says hold; None if
        nobody knows which there are.

        One that cannot be judged says so: what held goes on until the month is over.
        """
        if not self._known():
            return None
        found = [*map(self._parse, self._bodies())]
        month = month_name(self._now())
        return tuple(
            one.budget
            for one in found
            if one.budget is not None
            and (not one.problem or (one.budget.status is not None and one.budget.status.month == month))
        )

    def wake(self) -> None:
        """Look again soon: a budget was made, edited or deleted."""
        self._woken.set()

    def note(self, run: Json, until_saved_micros: int) -> None:
        """A pass over a run succeeded.

        Args:
            run: with the status that the pass computed.
            until_saved_micros: see Plan.
        """
        uid = run["metadata"]["uid"]
        if self._accounts is None:
            if any(True for _ in self._bodies()):
                self._early[uid] = (run, until_saved_micros)
            return
        self._awaited.discard(uid)
        account = account_of_run(run, until_saved_micros)
        if account is not None:
            self._accounts[account.uid] = account
            self._woken.set()

    def note_bill(self, bill: RunBill) -> None:
        """The last bill of a run was kept."""
        if not bill.closed:
            return
        if self._accounts is not None:
            self._accounts[bill.uid] = account_of_bill(bill)
        elif any(True for _ in self._bodies()):
            self._early_bills[bill.uid] = bill

    async def keep(self) -> None:
        """Look at all budgets again and again, until cancelled."""
        self.reset()
        try:
            while True:
                self._woken.clear()
                try:
                    await self.look()
                except Exception as error:  # whatever it is: runs go on
                    self._note_trouble("team budgets were", error)
                await asyncio.sleep(SETTLE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._woken.wait()
        finally:
            self._forget_judged()  # whoever leads next tells of them

    def _note_trouble(self, what: str, error: Exception) -> None:
        _log.warning("%s not judged, next try in %s s: %s", what, SETTLE_SECONDS, error, exc_info=error)
        self._on_error(error)
        self._woken.set()

    async def look(self) -> None:
        """Judge each budget once, and write what is new; what keeps one from being judged is told, see `on_error`.

        Raises:
            ApiError: the API server refuses to tell of bills.
        """
        bodies = [body for body in self._bodies() if self._may_cover(body)]
        self._parsed = {key: known for key, known in self._parsed.items() if key in set(map(_version, bodies))}
        there = {body["metadata"]["uid"] for body in bodies}
        self._judged = {uid: one for uid, one in self._judged.items() if uid in there}
        self._unjudged = {uid: name for uid, name in self._unjudged.items() if uid in there}
        if not bodies:
            self._accounts = None
            self._early.clear()
            self._early_bills.clear()
            return
        if self._time_untrusted():
            return
        if self._accounts is None:
            self._accounts = await self._load()
        now = self._now()
        self._begun = self._begun or now
        if self._awaited and now - self._begun < timedelta(seconds=FIRST_PASSES_SECONDS):
            return
        accounts = [*self._settled(self._accounts, now)]
        for body in bodies:
            try:
                found = self._parse(body)
                if found.problem:
                    self._judged.pop(body["metadata"]["uid"], None)
                    self._unjudged[body["metadata"]["uid"]] = body["metadata"]["name"]
                    await self._tell_unjudged(body, found, now)
                elif found.budget is not None:
                    await self._judge(body, found.budget, accounts, now)
            except Exception as error:  # the others are judged all the same
                self._note_trouble(f"budget={body['metadata']['name']} was", error)

    async def _load(self) -> dict[str, Account]:
        """What every run spent by its bill or its status; a run that lives counts by its status."""
        bills = [bill for body in await self._read_bills() if (bill := _bill_in(body)) is not None]
        accounts = {bill.uid: account_of_bill(bill) for bill in [*bills, *self._early_bills.values()]}
        told = [self._early.get(run["metadata"]["uid"], (run, 0)) for run in self._runs()]
        live = [account for run, ahead in told if (account := account_of_run(run, ahead)) is not None]
        self._awaited = {account.uid for account in live if account.rate_micros_per_hour} - self._early.keys()
        self._early.clear()
        self._early_bills.clear()
        return accounts | {account.uid: account for account in live}

    def _settled(self, accounts: dict[str, Account], now: datetime) -> Iterator[Account]:
        """Nobody may look any more at what held nodes: at a run that is gone or refused, or whose passes fail. It costs
        nothing from when its pods were seen to be gone. Those of a run that is gone are in its last bill up to a time.
        """
        alive = {run["metadata"]["uid"] for run in self._runs()}
        self._awaited &= alive
        self._left_at = {uid: at for uid, at in self._left_at.items() if uid in accounts}
        months = {month_name(now), month_name(month_begin(now) - timedelta(seconds=1))}
        for uid, account in accounts.items():
            if not account.rate_micros_per_hour:
                if months & account.months.keys():
                    yield account
                continue
            looked_at = account.looked_at
            old = looked_at is None or now - looked_at > timedelta(seconds=LEAVE_SECONDS)
            if self._holds_nodes(uid) and (uid in alive or not old):
                self._holding.add(uid)
                yield account
                continue
            if uid in self._holding:
                self._holding.discard(uid)
                self._left_at[uid] = now
            yield account.stopped(max(filter(None, (self._left_at.get(uid), account.as_of)), default=now))

    def _parse(self, body: Json) -> _Read:
        key = _version(body)
        if key not in self._parsed:
            found = _read(body)
            if not found.problem and found.budget is not None and not self._serves(found.budget):
                problem = BudgetMessage.OTHER_NAMESPACES.value
                found = found._replace(reason=BudgetReason.OTHER_NAMESPACES, problem=problem)
            self._parsed[key] = found
        return self._parsed[key]

    def _serves(self, budget: TrainingBudget) -> bool:
        """No run that it covers can be another operator's."""
        return not self._served or bool(budget.spec.namespaces and self._served.issuperset(budget.spec.namespaces))

    def _may_cover(self, body: Json) -> bool:
        """A run here can be under it; others are none of this operator's business."""
        named = (body.get("spec") or {}).get("namespaces")
        return not self._served or not named or not isinstance(named, list) or bool(self._served.intersection(named))

    async def _judge(self, body: Json, budget: TrainingBudget, accounts: Iterable[Account], now: datetime) -> None:
        status, events = judge(budget, accounts, now)
        uid, before = body["metadata"]["uid"], budget.status
        self._unjudged.pop(uid, None)
        self._judged[uid] = (budget, status)
        if status.unconfirmed:
            self._woken.set()
        news = before is None or _facts(status) != _facts(before)
        since = self._written.setdefault(uid, now)
        if not news and (status == before or now - since < timedelta(seconds=NUMBERS_SECONDS)):
            return
        # First on record, then obeyed: whoever leads next must not let a run go on that was stopped.
        await self._write(body, status.to_wire(), now)
        for event in events:
            await self._writer.emit_event(body, event.type, event.reason, event.message)
        if news:
            _log.info("budget=%s month=%s state=%s spent=%s", budget.metadata.name, *_told(status))
            self._on_change()

    async def _tell_unjudged(self, body: Json, found: _Read, now: datetime) -> None:
        message = BudgetMessage.UNJUDGED.format(message=cut(found.problem, LONGEST_MESSAGE))
        stored = body.get("status") or {}
        new = unjudged(found.reason, message, now)
        others = [one for one in stored.get("conditions") or [] if one.get("type") != new.type]
        if any(one.get("message") == message for one in stored.get("conditions") or []):
            return
        await self._write(body, stored | {"conditions": [new.to_wire(), *others]}, now)

    async def _write(self, body: Json, status: Json, now: datetime) -> None:
        head = body["metadata"]
        await self._writer.replace_status(BUDGET_KIND, "", head["name"], status, head["resourceVersion"])
        self._written[head["uid"]] = now

    def samples(self) -> Iterator[Sample]:
        """Metrics of every budget that this process judged, and of those that nobody can judge."""
        for name in self._unjudged.values():
            yield catalogue.TRAINING_BUDGET_JUDGED, (name,), 0.0
        for budget, status in self._judged.values():
            name, currency = budget.metadata.name, budget.spec.currency
            yield catalogue.TRAINING_BUDGET_JUDGED, (name,), 1.0
            yield catalogue.TRAINING_BUDGET_AMOUNT, (name, currency), parse_micros(budget.spec.amount) / MICROS
            yield catalogue.TRAINING_BUDGET_SPENT, (name, currency), status.spent_micros / MICROS
            yield catalogue.TRAINING_BUDGET_EXPECTED, (name, currency), shown_amount(status.expected)
            holding = {rule.action for rule in status.reached}
            for action in ACTIONS:
                yield catalogue.TRAINING_BUDGET_ACTION, (name, action), float(action in holding)


def _version(body: Json) -> tuple[str, str]:
    return body["metadata"]["uid"], body["metadata"]["resourceVersion"]


def _read(body: Json) -> _Read:
    """The status may be of another version, and hold more; a spec that says more than is known here is not judged."""
    status = read_budget_status(body["status"]) if body.get("status") else None
    whole = {name: value for name, value in body.items() if name != "status"}
    try:
        return _Read(TrainingBudget.from_wire(whole).model_copy(update={"status": status}))
    except ManifestError as error:
        spec = body.get("spec") or {}
        known = {name: spec[name] for name in ("team", "namespaces", "amount", "currency") if name in spec}
        try:
            budget = TrainingBudget.from_wire(whole | {"spec": known})
        except ManifestError:
            return _Read(None, problem=str(error))
        return _Read(budget.model_copy(update={"status": status}), problem=str(error))


def _bill_in(body: Json) -> RunBill | None:
    try:
        return read_bill(json.loads(body["data"][BILL_KEY]))
    except (BillError, ValueError, KeyError) as error:
        _log.warning("config map %s counts for no budget: %s", body["metadata"]["name"], error)
        return None


def _facts(status: TrainingBudgetStatus) -> Json:
    """Without what moves with time alone."""
    moving = {"spent_micros", "spent", "percent", "rate_per_hour", "expected", "runs"}
    return status.model_dump(exclude=moving)


def _told(status: TrainingBudgetStatus) -> tuple[str, str, str]:
    return status.month, status.state, status.spent
