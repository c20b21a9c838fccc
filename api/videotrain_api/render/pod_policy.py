"""Whether a run's worker pods keep to the policy of the cluster, told by fields of the run."""

from __future__ import annotations

from typing import Any, Final

from videotrain_api.render.pod import render_pod
from videotrain_api.resource.pool import PodTemplate
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_name, pool_path
from videotrain_api.rules.pod_security import Breach, Path, PodPolicy, breaches
from videotrain_api.rules.template import MERGE_KEYS
from videotrain_api.schema import Problem

_ACCOUNT_FIELDS: Final = ("serviceAccountName", "serviceAccount")
_TEMPLATE: Final = "spec.podTemplate"


def pod_problems(run: VideoTrainingRun, policy: PodPolicy) -> list[Problem]:
    """Everything in a run for which its worker pods break the policy.

    Args:
        run: one without problems of its own, so that its template can be merged.
        policy: of the cluster: the chart's value `podTemplate.policy`.
    """
    if policy == "any":
        return []
    template = run.spec.pod_template or PodTemplate()
    found = [
        Breach(path=("spec", field), value=template.spec[field], allowed="unset; set spec.pool.serviceAccountName",
               looser="any")
        for field in _ACCOUNT_FIELDS
        if template.spec.get(field) is not None
    ]  # fmt: skip
    first = {pool_name(run, stage): index for index, stage in reversed(list(enumerate(run.spec.stages)))}
    problems: list[Problem] = []
    for index in sorted(first.values()):
        pod = render_pod(run, 0, "config", stage=run.spec.stages[index])
        told = (
            _problem(pod, template, breach, policy, pool_path(run, index))
            for breach in [*found, *breaches(pod, policy)]
        )
        problems += [problem for problem in told if problem not in problems]
    return problems


def _problem(pod: dict[str, Any], template: PodTemplate, breach: Breach, policy: PodPolicy, pool: str) -> Problem:
    where = f"who installed the operator can allow it by the chart's value podTemplate.policy: {breach.looser}"
    message = f"allowed under podTemplate.policy {policy}: {breach.allowed}; {where}"
    return Problem(_run_path(pod, template, breach.path, pool), breach.value, message)


def _run_path(pod: dict[str, Any], template: PodTemplate, path: Path, pool: str) -> str:
    """The field of the run that a field of its pod comes from."""
    if path == ("spec", "priorityClassName") and path[1] not in template.spec:
        return f"{pool}.priorityClassName"
    here: Any = pod
    given: Any = {"metadata": template.metadata.to_wire(), "spec": template.spec}
    shown, field = _TEMPLATE, ""
    for part in path:
        if isinstance(part, int):
            here = here[part]
            place, given = _place(given, part, here, field)
            shown += f"[{place}]"
        else:
            here, given = (each.get(part) if isinstance(each, dict) else None for each in (here, given))
            field, shown = part, f"{shown}.{part}"
    return shown


def _place(given: Any, number: int, item: Any, field: str) -> tuple[str, Any]:
    """Where an item of a merged list stands in the template's list, and the item there; its name if it is not there."""
    key, items = MERGE_KEYS.get(field, ""), given if isinstance(given, list) else []
    if not isinstance(item, dict) or key not in item:
        return str(number), items[number] if number < len(items) else None
    known = [(str(n), one) for n, one in enumerate(items) if isinstance(one, dict) and one.get(key) == item[key]]
    return known[0] if known else (f"{key}={item[key]}", None)
