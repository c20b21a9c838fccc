"""The runs of a cluster, as every command that asks one finds them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import yaml

from videotrain.errors import UsageError
from videotrain_api.schema import Json
from videotrain_api.vocabulary import KIND
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import (
    ApiError,
    ApiUnavailable,
    ConfigurationError,
    KubeClient,
    connect,
    own_namespace,
)

Answer = TypeVar("Answer")
_OPTIONS: Final = "see --kubeconfig, --context, --namespace"


class ClusterChoice(NamedTuple):
    """Where runs are looked for."""

    namespace: str = ""
    """All if empty."""
    kubeconfig: str | None = None
    context: str | None = None


def ask(where: ClusterChoice, question: Callable[[KubeClient], Coroutine[Any, Any, Answer]]) -> Answer:
    """The answer of a cluster.

    Raises:
        UsageError: there is no cluster, or it refuses.
    """
    return asyncio.run(asked(where, question))


async def asked(where: ClusterChoice, question: Callable[[KubeClient], Coroutine[Any, Any, Answer]]) -> Answer:
    """The same within an event loop.

    Raises:
        UsageError: there is no cluster, or it refuses.
    """
    async with AsyncExitStack() as open_:
        client = await entered(open_, where)
        try:
            return await question(client)
        except (ApiError, NotFound, Conflict, OSError) as error:
            raise UsageError(told(error, client)) from error


async def entered(open_: AsyncExitStack, where: ClusterChoice) -> KubeClient:
    """A client, which is closed with the stack.

    Raises:
        UsageError: there is no usable configuration.
    """
    try:
        return await open_.enter_async_context(connect(where.kubeconfig, where.context))
    except (ConfigurationError, OSError) as error:
        raise UsageError(f"the cluster cannot be asked: {error}; {_OPTIONS}") from error
    except (
        yaml.YAMLError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:  # the library's, for a wrong file
        file = where.kubeconfig or "of the usual places"
        raise UsageError(f"the kubeconfig {file} is none: {error}; see --kubeconfig") from error


def told(error: Exception, client: KubeClient) -> str:
    """What a cluster that does not answer a request, or refuses it, said."""
    if isinstance(error, NotFound | Conflict):
        return f"the cluster refuses: {error}"
    status = error.status if isinstance(error, ApiError) else 0
    if status == 0:
        return f"cannot connect to {urlsplit(client.server).netloc}: {error}; {_OPTIONS}"
    if status == HTTPStatus.UNAUTHORIZED or isinstance(error, ApiUnavailable):
        return f"the cluster cannot be asked: {error}; {_OPTIONS}"
    return f"the cluster refuses: {error}"


async def read_runs(where: ClusterChoice) -> list[Json]:
    """The runs as the API server has them, by namespace and name.

    Raises:
        UsageError: there is no cluster, or it refuses.
    """
    return await asked(where, lambda client: list_runs(client, where))


async def list_runs(client: KubeClient, where: ClusterChoice) -> list[Json]:
    """The same of a client; who may not list all namespaces sees that of the context."""
    try:
        runs = await client.list(KIND, where.namespace)
    except ApiError as error:
        if where.namespace or error.status != HTTPStatus.FORBIDDEN:
            raise
        own = own_namespace(where.kubeconfig, where.context)
        sys.stderr.write(f"videotrain: only namespace {own} is looked at: {error}\n")
        runs = await client.list(KIND, own)
    return sorted(runs, key=lambda run: (run["metadata"]["namespace"], run["metadata"]["name"]))


async def find_run(client: KubeClient, where: ClusterChoice, name: str) -> Json:
    """The only run of a name, which may be NAMESPACE/NAME.

    Raises:
        UsageError: there is none, or there are several.
    """
    namespace = name.rpartition("/")[0] or where.namespace
    return named(await list_runs(client, where._replace(namespace=namespace)), name)


def named(runs: Sequence[Json], name: str, before: str = "") -> Json:
    """The only one of these runs that NAME, or NAMESPACE/NAME, means.

    Args:
        runs: to choose from.
        name: what the user typed.
        before: of the message, if it is none: what else the name is not.

    Raises:
        UsageError: it means none of them, or several.
    """
    namespace, _, short = name.rpartition("/")
    wanted = [run for run in runs if run["metadata"]["name"] == short]
    wanted = [run for run in wanted if not namespace or run["metadata"]["namespace"] == namespace]
    if len(wanted) != 1:
        there = ", ".join(f"{run['metadata']['namespace']}/{run['metadata']['name']}" for run in wanted or runs)
        raise UsageError(f"{name}: {before}{len(wanted)} runs of that name; allowed: {there or 'none there'}")
    return wanted[0]
