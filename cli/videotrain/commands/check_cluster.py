"""What a cluster says of a run before it is made: admission, Secrets, queue and nodes. Nothing is changed there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from videotrain.commands.check import KEYS, credentials_of
from videotrain.commands.cluster_runs import ClusterChoice, entered, told
from videotrain.errors import UsageError
from videotrain.manifest_file import ManifestFile
from videotrain_api.checks import CheckName, Finding
from videotrain_api.render.pod import render_pod
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_of, pool_path
from videotrain_api.schema import Json
from videotrain_api.vocabulary import FIELD_MANAGER, KUEUE
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient, own_namespace
from videotrain_operator.kube.kinds import RUN

_FORBIDDEN = 403
_NO_ANSWER = (0, 401)
"""Statuses of an API server that says nothing to this user: 0 stands for no answer."""
_UNITS: dict[str, float] = {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGTPE", start=1)}
_UNITS |= {unit: 1000.0**power for power, unit in enumerate("kMGTPE", start=1)}
_UNITS |= {"m": 1e-3, "u": 1e-6, "n": 1e-9}


def ask_cluster(
    run: VideoTrainingRun, file: ManifestFile, where: ClusterChoice
) -> tuple[list[Finding], dict[str, str]]:
    """Findings, and the object store's credentials if the cluster shows them to this user.

    Raises:
        UsageError: the cluster cannot be asked.
    """
    return asyncio.run(_asked(run, file, where))


async def _asked(
    run: VideoTrainingRun, file: ManifestFile, where: ClusterChoice
) -> tuple[list[Finding], dict[str, str]]:
    async with AsyncExitStack() as open_:
        client = await entered(open_, where)
        wanted = where.namespace or file.run["metadata"].get("namespace")
        namespace = wanted or own_namespace(where.kubeconfig, where.context)
        secrets = {secret["metadata"]["name"]: secret for secret in file.secrets}
        try:
            findings = [await _admission(client, file.run, namespace)]
            findings += [found async for found in _secrets(client, run, namespace, secrets)]
            findings += [found async for found in _queue(client, run, namespace)]
            findings += [found async for found in _nodes(client, run)]
        except (ApiError, OSError) as error:
            raise UsageError(told(error, client)) from error
    named = secrets.get(run.spec.storage.credentials_secret or "")
    return findings, credentials_of(named) if named is not None else {}


async def _admission(client: KubeClient, manifest: Json, namespace: str) -> Finding:
    """A creation that the server does not carry out: its schema, its webhook and quotas speak."""
    head = {**manifest["metadata"], "namespace": namespace}
    name, path = str(head.get("name")), RUN.path(namespace)
    query = {"dryRun": "All", "fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    try:
        await client.raw("POST", path, {**manifest, "metadata": head}, query)
    except Conflict as error:
        if "already exists" not in str(error):
            return _wrong("admission", "spec", name, str(error))
        taken = f"there is a run of this name in namespace {namespace}; choose another, or delete that one"
        return _wrong("admission", "metadata.name", name, taken)
    except NotFound as error:
        missing = f"no {RUN.name} is known there, or no namespace {namespace!r}: install the operator, or name another"
        return _wrong("admission", "metadata.namespace", namespace, f"{missing} ({error})")
    except ApiError as error:
        if error.status in _NO_ANSWER or isinstance(error, ApiUnavailable):
            return _unseen("admission", "spec", name, error)
        if error.status == _FORBIDDEN and error.reason == "Forbidden" and "admission webhook" not in str(error):
            return _wrong("admission", "metadata.namespace", namespace, f"you may not make a run there: {error}")
        return _wrong("admission", "spec", name, str(error))
    return Finding(check="admission", path="spec", value=name, verdict="ok", message="the API server would take it")


async def _secrets(client: KubeClient, run: VideoTrainingRun, namespace: str, secrets: dict[str, Json]) -> Any:
    wanted: dict[str, tuple[str, Sequence[str]]] = {}
    if run.spec.storage.credentials_secret:
        wanted["spec.storage.credentialsSecret"] = (run.spec.storage.credentials_secret, KEYS)
    for path, pool in _pools(run):
        for number, name in enumerate(pool.image_pull_secrets):
            wanted[f"{path}.imagePullSecrets[{number}]"] = (name, ())
    for path, (name, keys) in wanted.items():
        yield await _secret(client, namespace, path, name, keys, secrets)


async def _secret(
    client: KubeClient, namespace: str, path: str, name: str, keys: Sequence[str], secrets: dict[str, Json]
) -> Finding:
    """One that the manifest brings is made with the run; another must be there."""
    brought = name in secrets
    if not brought:
        try:
            secrets[name] = await client.get("Secret", namespace, name)
        except NotFound:
            return _wrong(
                "secret", path, name, f"there is no such Secret in namespace {namespace}; make it, or name another"
            )
        except ApiError as error:
            return _unseen("secret", path, name, error, f"you may not read Secrets of namespace {namespace}")
    held = {**(secrets[name].get("data") or {}), **(secrets[name].get("stringData") or {})}
    missing = [key for key in keys if not held.get(key)]
    if missing:
        return _wrong("secret", path, name, f"has no key {' and no key '.join(missing)}; allowed: {', '.join(keys)}")
    return Finding(
        check="secret", path=path, value=name, verdict="ok", message="in the manifest" if brought else f"in {namespace}"
    )


async def _queue(client: KubeClient, run: VideoTrainingRun, namespace: str) -> Any:
    queue = run.spec.queue
    if queue is None:
        return
    path, name = "spec.queue.name", queue.name
    try:
        groups = {group["name"]: group for group in (await client.raw("GET", "/apis"))["groups"]}
        if KUEUE not in groups:
            yield _wrong("queue", path, name, "the cluster has no Kueue; install it, or leave spec.queue out")
            return
        root = f"/apis/{groups[KUEUE]['preferredVersion']['groupVersion']}"
        local = await client.raw("GET", f"{root}/namespaces/{namespace}/localqueues/{name}")
    except NotFound:
        missing = f"there is no LocalQueue of this name in namespace {namespace}; make it, or name another"
        yield _wrong("queue", path, name, missing)
        return
    except ApiError as error:
        yield _unseen("queue", path, name, error, f"you may not read LocalQueues of namespace {namespace}")
        return
    for condition in (local.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Active" and condition["status"] == "False":
            yield _wrong("queue", path, name, f"the LocalQueue lets nothing in: {condition.get('message')}")
            return
    yield Finding(check="queue", path=path, value=name, verdict="ok", message=f"in {namespace}")


async def _nodes(client: KubeClient, run: VideoTrainingRun) -> Any:
    try:
        nodes = await client.list("Node")
    except ApiError as error:
        yield _unseen("nodes", "spec.pool", None, error, "you may not list nodes")
        return
    for path, pool in _pools(run):
        yield _room(run, path, pool, nodes)


def _room(run: VideoTrainingRun, path: str, pool: Pool, nodes: Sequence[Json]) -> Finding:
    """Nodes that a worker of the pool could be put on, if they were empty."""
    stage = next(s for i, s in enumerate(run.spec.stages) if pool_path(run, i) == path)
    pod = render_pod(run, 0, "any", stage=stage)["spec"]
    left = list(nodes)
    asked: list[tuple[str, object, Any]] = [
        (
            "nodeSelector",
            pool.node_selector,
            lambda node: _labels(node).items() >= (pod.get("nodeSelector") or {}).items(),
        ),
        (
            "tolerations",
            [t.to_wire() for t in pool.tolerations],
            lambda node: not _untolerated(node, pod["tolerations"]),
        ),
    ]
    requests = next(c for c in pod["containers"] if c["name"] == "worker")["resources"].get("requests") or {}
    limits = next(c for c in pod["containers"] if c["name"] == "worker")["resources"].get("limits") or {}
    fields = {pool.gpu_resource: "gpusPerNode", "cpu": "cpu", "memory": "memory", pool.rdma_resource: "rdmaCount"}
    for resource, amount in {**limits, **requests}.items():
        asked.append((fields.get(resource, "podTemplate"), amount, lambda node, r=resource, a=amount: _has(node, r, a)))
    for field, value, suits in asked:
        left, before = [node for node in left if suits(node)], left
        if not left:
            told = f"none of {len(before)} nodes fits; they have {_offered(field, before, pool)}"
            return _wrong("nodes", f"{path}.{field}", value, told)
    fewest = node_bounds(run, stage).min
    ready = [node for node in left if not (node.get("spec") or {}).get("unschedulable")]
    told = f"{len(left)} nodes fit, {len(ready)} of them open; at least {fewest} are needed"
    enough = len(ready) >= fewest
    # Autoscalers make nodes, and cordons go.
    return Finding(check="nodes", path=path, value=fewest, verdict="ok" if enough else "warning", message=told)


def _pools(run: VideoTrainingRun) -> Iterator[tuple[str, Pool]]:
    """The pools that stages use, by the field that has them."""
    yield from {pool_path(run, i): pool_of(run, stage) for i, stage in enumerate(run.spec.stages)}.items()


def _labels(node: Json) -> dict[str, str]:
    found: dict[str, str] = node["metadata"].get("labels") or {}
    return found


def _untolerated(node: Json, tolerations: Iterable[Json]) -> list[str]:
    """Taints that keep a pod away, but for those that come and go with the node's health."""
    taints = [
        taint
        for taint in (node.get("spec") or {}).get("taints") or []
        if taint["effect"] != "PreferNoSchedule" and not taint["key"].startswith("node.kubernetes.io/")
    ]
    return [taint["key"] for taint in taints if not any(_tolerates(each, taint) for each in tolerations)]


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, taint["key"])
    return (toleration.get("key"), toleration.get("value") or "") == (taint["key"], taint.get("value") or "")


def _has(node: Json, resource: str, amount: str) -> bool:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return _number(str(allocatable.get(resource, "0"))) >= _number(str(amount))


def _number(quantity: str) -> float:
    """A Kubernetes quantity as a number."""
    for suffix, factor in _UNITS.items():
        if quantity.endswith(suffix):
            return float(quantity.removesuffix(suffix)) * factor
    return float(quantity)


def _offered(field: str, nodes: Sequence[Json], pool: Pool) -> str:
    """What nodes have instead, for a message."""
    if not nodes:
        return "nothing: the cluster has no nodes"
    if field == "nodeSelector":
        wanted = pool.node_selector
        values = {key: sorted({_labels(node).get(key, "no such label") for node in nodes}) for key in wanted}
        return "; ".join(f"{key}: {', '.join(found[:5])}" for key, found in values.items())
    if field == "tolerations":
        taints = [_untolerated(node, [t.to_wire() for t in pool.tolerations]) for node in nodes]
        return f"taints {', '.join(sorted({key for keys in taints for key in keys})[:8])}"
    resource = {"gpusPerNode": pool.gpu_resource, "rdmaCount": pool.rdma_resource}.get(field, field)
    most = [((node.get("status") or {}).get("allocatable") or {}).get(resource, "0") for node in nodes]
    return f"{resource} {', '.join(sorted(set(map(str, most)))[:5])}"


def _wrong(check: CheckName, path: str, value: object, message: str) -> Finding:
    return Finding(check=check, path=path, value=value, verdict="wrong", message=message)


def _unseen(check: CheckName, path: str, value: object, error: ApiError, forbidden: str = "") -> Finding:
    """What the server does not show: to this user, or now.

    Raises:
        ApiError: it shows nothing at all.
    """
    if error.status in _NO_ANSWER:
        raise error
    told = forbidden if error.status == _FORBIDDEN else f"the API server gave no answer to this: {error}"
    return Finding(check=check, path=path, value=value, verdict="open", message=told)
