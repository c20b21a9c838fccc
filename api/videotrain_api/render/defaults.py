"""The cluster's defaults in a run and in its worker pods, and what runs may not override."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError

from videotrain_api.render.merge import ONE_OF
from videotrain_api.resource.pool import ENV_ADVICE, PodTemplate, Pool, reserved_env
from videotrain_api.resource.run_defaults import CLOSED, LIMITS, DefaultName, RunDefaults
from videotrain_api.resource.trainrun import TRAINER_IMAGE, VideoTrainingRun, pools_of
from videotrain_api.rules.template import MERGE_KEYS, PATCH, check_template
from videotrain_api.schema import ManifestError, Problem, camel_case, problems_of
from videotrain_api.vocabulary import CONTAINER_WORKER

NO_DEFAULTS: Final = RunDefaults()
LARGEST: Final = 64 * 1024
"""Bytes of all defaults, which each child of the webhook gets as an argument."""
_TEMPLATE: Final = "spec.podTemplate"
_SIDECARS: Final = ("containers", "initContainers")


def parse_defaults(data: Any) -> RunDefaults:
    """The defaults that somebody wrote.

    Args:
        data: JSON-compatible data, with the names of the wire.

    Raises:
        ManifestError: with every problem found.
    """
    size = len(json.dumps(data, default=str))
    if size > LARGEST:
        raise ManifestError([Problem("(root)", f"{size} bytes", f"allowed: {LARGEST} bytes")])
    try:
        defaults = RunDefaults.model_validate(data, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems_of(error, RunDefaults)) from None
    problems = [
        Problem(f"env.{name}", value, f"reserved; {ENV_ADVICE}")
        for name, value in defaults.env.items()
        if reserved_env(name)
    ]
    problems += check_template("podTemplate", defaults.pod_template or PodTemplate())
    problems += [
        Problem(f"enforced[{number}]", name, f"there is no such default to enforce; set {name} beside it")
        for number, name in enumerate(defaults.enforced)
        if name not in (*CLOSED, *(name for name, value in defaults.to_wire().items() if value not in ({}, [])))
    ]
    if problems:
        raise ManifestError(problems)
    return defaults


def with_defaults(run: VideoTrainingRun, defaults: RunDefaults) -> VideoTrainingRun:
    """A run with the cluster's image, pull policy and limits where it gives none, or none that is allowed."""
    if defaults == NO_DEFAULTS:
        return run
    spec = run.spec
    changes: dict[str, Any] = {}
    for name in ("image", "image_pull_policy", "start_deadline_seconds", "active_deadline_seconds",
                 "ttl_seconds_after_finished"):  # fmt: skip
        own, default, wire = getattr(spec, name), getattr(defaults, name), camel_case(name)
        if own is None:
            changes[name] = default
        elif wire in defaults.enforced:
            changes[name] = min(own, default) if wire in LIMITS else default
    image = changes.get("image", spec.image) or TRAINER_IMAGE
    changes["image"] = from_registry(image, defaults.registry)
    return run.model_copy(update={"spec": spec.model_copy(update=changes)})


def with_pool_defaults(pool: Pool, defaults: RunDefaults) -> Pool:
    """A pool with the cluster's environment, node labels, tolerations and pull secrets beside its own."""
    if defaults == NO_DEFAULTS:
        return pool
    changes: dict[str, Any] = {}
    for name in ("env", "node_selector"):
        own, default = getattr(pool, name), getattr(defaults, name)
        changes[name] = own | default if camel_case(name) in defaults.enforced else default | own
    for name in ("tolerations", "image_pull_secrets"):
        default = getattr(defaults, name)
        own = [] if camel_case(name) in defaults.enforced else getattr(pool, name)
        changes[name] = default + [item for item in own if item not in default]
    return pool.model_copy(update=changes)


def from_registry(image: str, registry: str | None) -> str:
    """An image with the registry that it comes from if it names none itself."""
    head, slash, _ = image.partition("/")
    named = bool(slash) and ("." in head or ":" in head or head == "localhost")
    return image if named or not registry else f"{registry}/{image}"


def templates(run: VideoTrainingRun, defaults: RunDefaults) -> list[PodTemplate]:
    """What is laid over the worker pods of a run, one after another."""
    own = run.spec.pod_template
    closed = [name for name in CLOSED if name in defaults.enforced]
    if own is not None and closed:
        own = own.model_copy(update={"spec": {name: part for name, part in own.spec.items() if name not in closed}})
    open_default = None if "podTemplate" in defaults.enforced else defaults.pod_template
    fixed = (template for _, template in _fixed_templates(defaults))
    return [each for each in (open_default, own, *fixed) if each is not None]


def _fixed_templates(defaults: RunDefaults) -> Iterator[tuple[DefaultName, PodTemplate]]:
    """What no template of a run may undo, by the default that enforces it."""
    if "podTemplate" in defaults.enforced and defaults.pod_template is not None:
        yield "podTemplate", defaults.pod_template
    worker: dict[DefaultName, Any] = {
        "image": from_registry(defaults.image or TRAINER_IMAGE, defaults.registry),
        "imagePullPolicy": defaults.image_pull_policy,
        "env": [{"name": name, "value": value} for name, value in defaults.env.items()],
    }
    for name, value in worker.items():
        if name in defaults.enforced:
            yield name, PodTemplate(spec={"containers": [{"name": CONTAINER_WORKER, name: value}]})
    if "nodeSelector" in defaults.enforced:
        yield "nodeSelector", PodTemplate(spec={"nodeSelector": defaults.node_selector})


def default_problems(run: VideoTrainingRun, defaults: RunDefaults) -> list[Problem]:
    """Every field in which a run overrides a default that is enforced.

    Args:
        run: as it was written, without problems of its own.
        defaults: of the cluster.
    """
    if not defaults.enforced:
        return []
    found = [*_scalars(run, defaults), *_images(run, defaults), *_pools(run, defaults), *_lists(run, defaults)]
    if (own := run.spec.pod_template) is not None:
        given = {"metadata": own.metadata.to_wire(), "spec": own.spec}
        for name, template in _fixed_templates(defaults):
            fixed = {"metadata": template.metadata.to_wire(), "spec": template.spec}
            found += _contradictions(_TEMPLATE, given, fixed, name)
    return found


def _problem(path: str, value: Any, allowed: Any, name: DefaultName) -> Problem:
    where = (
        f"the defaults of this cluster enforce {name}; who installed the operator changes that by the chart's value "
        f"runDefaults.{name}, or takes it out of runDefaults.enforced"
    )
    return Problem(path, value, f"allowed: {allowed}; {where}")


def _scalars(run: VideoTrainingRun, defaults: RunDefaults) -> Iterator[Problem]:
    limits = (
        ("startDeadlineSeconds", run.spec.start_deadline_seconds, defaults.start_deadline_seconds),
        ("activeDeadlineSeconds", run.spec.active_deadline_seconds, defaults.active_deadline_seconds),
        ("ttlSecondsAfterFinished", run.spec.ttl_seconds_after_finished, defaults.ttl_seconds_after_finished),
    )
    for name, own, most in limits:
        if name in defaults.enforced and own is not None and most is not None and own > most:
            yield _problem(f"spec.{name}", own, f"at most {most}, or leave it out", name)
    policy, only = run.spec.image_pull_policy, defaults.image_pull_policy
    if "imagePullPolicy" in defaults.enforced and policy not in (None, only):
        yield _problem("spec.imagePullPolicy", policy, f"{only}, or leave it out", "imagePullPolicy")


def _images(run: VideoTrainingRun, defaults: RunDefaults) -> Iterator[Problem]:
    own = run.spec.image
    if own is not None and defaults.image is not None and "image" in defaults.enforced:
        only = from_registry(defaults.image, defaults.registry)
        if from_registry(own, defaults.registry) != only:
            yield _problem("spec.image", own, f"{only}, or leave it out", "image")
    if "registry" not in defaults.enforced:
        return
    images = {"spec.image": own}
    for field in _SIDECARS:
        for number, one in enumerate((run.spec.pod_template or PodTemplate()).spec.get(field) or []):
            images[f"{_TEMPLATE}.spec.{field}[{number}].image"] = one.get("image")
    for path, image in images.items():
        if isinstance(image, str) and not from_registry(image, defaults.registry).startswith(f"{defaults.registry}/"):
            yield _problem(path, image, f"images below {defaults.registry}/, or that name no registry", "registry")


def _pools(run: VideoTrainingRun, defaults: RunDefaults) -> Iterator[Problem]:
    fields: tuple[tuple[DefaultName, str], ...] = (("env", "env"), ("nodeSelector", "node_selector"))
    for name, field in fields:
        for path, pool in pools_of(run).items() if name in defaults.enforced else ():
            for key, only in getattr(defaults, field).items():
                own = getattr(pool, field).get(key, only)
                if own != only:
                    yield _problem(f"{path}.{name}.{key}", own, f"{only!r}, or leave it out", name)


def _lists(run: VideoTrainingRun, defaults: RunDefaults) -> Iterator[Problem]:
    """Lists to which nothing may be added."""
    known, template = defaults.to_wire(), (run.spec.pod_template or PodTemplate()).spec
    for name in CLOSED:
        if name not in defaults.enforced:
            continue
        shown = f"the cluster's own, {json.dumps(known[name])}, which every pod has" if known[name] else "none"
        given = {f"{path}.{name}": pool.to_wire()[name] for path, pool in pools_of(run).items()}
        given[f"{_TEMPLATE}.spec.{name}"] = template.get(name) or []
        for path, items in given.items():
            for number, item in enumerate(items):
                mapping = isinstance(item, dict)
                alike = item if not mapping else {"operator": "Equal"} | item if name == "tolerations" else item["name"]
                if alike not in known[name]:
                    yield _problem(f"{path}[{number}]", item, shown, name)


def _contradictions(path: str, given: Any, fixed: Any, name: DefaultName, field: str = "") -> Iterator[Problem]:
    """Where a template says something else than one that is laid over it."""
    if isinstance(given, list) and isinstance(fixed, list) and field in MERGE_KEYS:
        key = MERGE_KEYS[field]
        ours = {item.get(key): item for item in fixed}
        for number, item in enumerate(given):
            if key in item and item[key] in ours:
                # An item that is one of several kinds of source is another as soon as it names another kind.
                whole = field in ONE_OF and item != ours[item[key]]
                place = f"{path}[{number}]"
                if whole:
                    yield _problem(place, item, json.dumps(ours[item[key]]), name)
                else:
                    yield from _contradictions(place, item, ours[item[key]], name)
    elif isinstance(given, dict) and isinstance(fixed, dict):
        if given.get(PATCH, "merge") != "merge":
            yield _problem(f"{path}.{PATCH}", given[PATCH], "merge", name)
        for key in sorted(fixed.keys() & given.keys() - {PATCH}):
            yield from _contradictions(f"{path}.{key}", given[key], fixed[key], name, key)
    elif given != fixed:
        yield _problem(path, given, json.dumps(fixed), name)
