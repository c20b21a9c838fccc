"""What to answer the API server about one request. Pure, apart from the log of its own faults.

A refused manifest is told everything that is wrong with it. An object that exists is never trapped: what was wrong
before a change is only warned about, metadata may always change, and an object under deletion may do anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from videotrain_api.cost.forecast import CostForecast, forecast
from videotrain_api.money import parse_micros
from videotrain_api.render.defaults import NO_DEFAULTS, default_problems
from videotrain_api.render.pod_policy import pod_problems
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_api.rules.warn import warnings
from videotrain_api.schema import Json, ManifestError, Problem
from videotrain_api.validation import parse_run
from videotrain_operator.kube.json_text import read_json

Outcome = Literal["allowed", "denied", "skipped", "failed"]
"""Checked and taken, checked and refused, nothing to check, or the check itself failed."""
REVIEW_VERSION: Final = "admission.k8s.io/v1"
MOST_PROBLEMS: Final = 40
LONGEST_PROBLEM: Final = 500
LONGEST_UID: Final = 256
LONGEST_WARNING: Final = 240
"""kubectl prints a warning on one line; the API server drops what is beyond 256 characters."""
UNBUDGETED_GPU_HOURS: Final = 1000.0
"""A run that needs more than this without any budget is worth a warning; a smaller one is an ordinary experiment."""
_CHECKED: Final = ("CREATE", "UPDATE")
_GENERATED: Final = "xxxxx"
"""Stands for the suffix that the API server puts behind metadata.generateName."""
_log = logging.getLogger(__name__)


class BadReview(ValueError):
    """The request is no AdmissionReview, so there is nobody to answer."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one request."""

    outcome: Outcome
    problems: tuple[Problem, ...] = ()
    """Why it is refused; empty if it is not."""
    warnings: tuple[str, ...] = ()
    """Shown to the user by kubectl, whatever the outcome."""


def answer(
    body: bytes, pod_policy: PodPolicy = DEFAULT_POD_POLICY, defaults: RunDefaults = NO_DEFAULTS
) -> tuple[Outcome, Json]:
    """The AdmissionReview that answers the one in `body`, and how it ended.

    Args:
        body: as it was sent.
        pod_policy: what worker pods have to keep to.
        defaults: of the cluster, which runs may not override where they are enforced.

    Raises:
        BadReview: the body is no AdmissionReview of version v1.
    """
    try:
        review = read_json(body)
    except ValueError as error:
        raise BadReview(f"the body is no JSON that can be read: {error}") from error
    request = review.get("request") if isinstance(review, dict) else None
    uid = request.get("uid") if isinstance(request, dict) else None
    if not isinstance(request, dict) or not isinstance(uid, str) or len(uid) > LONGEST_UID:
        raise BadReview(
            f"the body is no AdmissionReview with a request that has a uid of at most {LONGEST_UID} characters"
        )
    verdict = review_request(request, pod_policy, defaults)
    response = {"uid": uid, "allowed": not verdict.problems}
    if verdict.problems:
        response["status"] = _status(verdict.problems)
    if verdict.warnings:
        response["warnings"] = [_cut(text, LONGEST_WARNING) for text in verdict.warnings]
    return verdict.outcome, {"apiVersion": REVIEW_VERSION, "kind": "AdmissionReview", "response": response}


def review_request(
    request: Mapping[str, Any], pod_policy: PodPolicy = DEFAULT_POD_POLICY, defaults: RunDefaults = NO_DEFAULTS
) -> Verdict:
    """Check an AdmissionRequest, that its worker pods keep to a policy, and that it overrides nothing that is enforced.

    A manifest on which the models themselves fail is refused: the operator could not handle it either.
    """
    try:
        return _review(request, pod_policy, defaults)
    except MemoryError:  # no fault of the checks
        raise
    except Exception as error:
        run = _cut(f"{request.get('namespace')}/{request.get('name')}")
        _log.exception("run=%s review=failed", run)
        message = f"the checks of videotrain failed on this manifest ({type(error).__name__}); please report it"
        return Verdict(outcome="failed", problems=(Problem("(root)", str(error), message),))


def _review(request: Mapping[str, Any], pod_policy: PodPolicy, defaults: RunDefaults) -> Verdict:
    new, old = request.get("object"), request.get("oldObject")
    if request.get("operation") not in _CHECKED or request.get("subResource") or _under_deletion(new):
        return Verdict(outcome="skipped")
    if request["operation"] == "CREATE":
        run = _parsed(_named(new), pod_policy, defaults)
        if isinstance(run, VideoTrainingRun):
            return Verdict(outcome="allowed", warnings=_warnings(run))
        return Verdict(outcome="denied", problems=run)
    if isinstance(new, dict) and isinstance(old, dict) and new.get("spec") == old.get("spec"):
        return Verdict(outcome="skipped")
    return _review_change(new, old, pod_policy, defaults)


def _review_change(new: Any, old: Any, pod_policy: PodPolicy, defaults: RunDefaults) -> Verdict:
    """Refuse what is newly wrong. A run that an older version took can still be suspended, or mended step by step."""
    run, before = (_parsed(manifest, pod_policy, defaults) for manifest in (new, old))
    # What was refused was not accepted with its template either.
    changed = _forbidden_changes(new, old) if isinstance(before, VideoTrainingRun) else ()
    if isinstance(run, VideoTrainingRun):
        return Verdict(outcome="denied" if changed else "allowed", problems=changed, warnings=_warnings(run))
    known = () if isinstance(before, VideoTrainingRun) else {(p.path, p.message) for p in before}
    fresh = changed + tuple(p for p in run if (p.path, p.message) not in known)
    stale = tuple(f"was wrong before this change: {p}" for p in run if (p.path, p.message) in known)
    return Verdict(outcome="denied" if fresh else "allowed", problems=fresh, warnings=stale[:MOST_PROBLEMS])


def _forbidden_changes(new: Any, old: Any) -> tuple[Problem, ...]:
    """Changes of fixed fields that the rules of the CRD cannot see, since the field keeps unknown fields."""
    specs = (body.get("spec") if isinstance(body, dict) else None for body in (old, new))
    before, after = (spec.get("podTemplate") if isinstance(spec, dict) else None for spec in specs)
    if before == after:
        return ()
    return (Problem("spec.podTemplate", "(changed)", "cannot change; delete the run and create it anew"),)


def _parsed(manifest: Any, pod_policy: PodPolicy, defaults: RunDefaults) -> VideoTrainingRun | tuple[Problem, ...]:
    try:
        run = parse_run(manifest)
    except ManifestError as error:
        return tuple(error.problems)
    return (*default_problems(run, defaults), *pod_problems(run, pod_policy)) or run


def _named(manifest: Any) -> Any:
    """The manifest with a name of the form that the API server will make from generateName."""
    head = manifest.get("metadata") if isinstance(manifest, dict) else None
    if not isinstance(head, dict) or head.get("name") or not head.get("generateName"):
        return manifest
    return manifest | {"metadata": head | {"name": f"{head['generateName']}{_GENERATED}"}}


def _under_deletion(manifest: Any) -> bool:
    head = manifest.get("metadata") if isinstance(manifest, dict) else None
    return isinstance(head, dict) and bool(head.get("deletionTimestamp"))


def _warnings(run: VideoTrainingRun) -> tuple[str, ...]:
    """What is accepted and may still surprise: the bill first."""
    return (*_of_money(run), *map(str, warnings(run)))


def _of_money(run: VideoTrainingRun) -> tuple[str, ...]:
    expected = forecast(run)
    hours, budget = expected.gpu_days * 24, run.spec.budget
    more = "" if expected.complete else " or more"
    if budget is None:
        if hours <= UNBUDGETED_GPU_HOURS:
            return ()
        amount = f"about {hours:,.0f} GPU-hours{more} ({expected.cost} {expected.currency}) by `videotrain plan`"
        return (f"spec.budget is not set and the run needs {amount}; nothing will stop it from spending more",)
    return _beyond_budget(run, expected, hours, more)


def _beyond_budget(run: VideoTrainingRun, expected: CostForecast, hours: float, more: str) -> tuple[str, ...]:
    budget = run.spec.budget
    if budget is None:
        return ()
    then = f"by `videotrain plan`; spec.budget.action is {budget.action}"
    found = []
    if budget.max_cost is not None and expected.cost_micros > parse_micros(budget.max_cost):
        limit, currency = budget.max_cost, expected.currency
        found.append(f"spec.budget.maxCost: {limit}: the run needs about {expected.cost} {currency}{more} {then}")
    if budget.max_gpu_hours is not None and hours > budget.max_gpu_hours:
        found.append(
            f"spec.budget.maxGpuHours: {budget.max_gpu_hours:g}: the run needs about {hours:,.0f}{more} {then}"
        )
    return tuple(found)


def _status(problems: tuple[Problem, ...]) -> Json:
    shown = [_cut(str(problem), LONGEST_PROBLEM) for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        shown.append(f"and {len(problems) - MOST_PROBLEMS} more")
    causes = [
        {"reason": "FieldValueInvalid", "field": _cut(p.path, LONGEST_PROBLEM), "message": _cut(p.message)}
        for p in problems[:MOST_PROBLEMS]
    ]
    return {"code": 422, "reason": "Invalid", "message": "\n".join(shown), "details": {"causes": causes}}


def _cut(text: str, most: int = LONGEST_PROBLEM) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
