"""The object store of a run in a cluster, with the keys that whoever asks has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import boto3

from videotrain.commands.cluster_runs import ClusterChoice, ask, find_run
from videotrain.objectstore.s3_client import Credentials, external_credentials, s3_client
from videotrain_api.render.names import ledger_name
from videotrain_api.resource.trainrun import Storage
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import KubeClient

TIMEOUT_SECONDS = 60.0
"""Without a byte of an answer from the object store."""


class FoundRun(NamedTuple):
    """What a cluster has of a run."""

    run: Json
    ledger: Json | None
    secrets: Sequence[Json]
    """With the keys of its object store, if this account has none."""

    @property
    def storage(self) -> Storage:
        """Where it stores what it makes."""
        return Storage.from_wire(self.run["spec"]["storage"])

    def client(self, endpoint_url: str | None) -> Any:
        """boto3's, for that store: with the AWS keys of this account, without any with the run's own.

        Args:
            endpoint_url: of the store; the run's if None.

        Raises:
            StorageError: there are no keys.
        """
        storage = self.storage
        return s3_client(endpoint_url or storage.endpoint_url, self.keys(), storage.region, TIMEOUT_SECONDS)

    def keys(self) -> Credentials:
        """Of that store: this account's, without any the run's own.

        Raises:
            StorageError: there are none.
        """
        storage = self.storage
        named_keys = storage if self.secrets else storage.model_copy(update={"credentials_secret": None})
        return external_credentials(named_keys, self.secrets)


def found_run(name: str, where: ClusterChoice) -> FoundRun:
    """A run of a cluster, with what is needed to reach its store.

    Raises:
        UsageError: there is no such run, or the cluster cannot be asked.
    """
    own_keys = boto3.Session().get_credentials() is not None
    return ask(where, lambda client: _find(client, where, name, own_keys=own_keys))


async def _find(client: KubeClient, where: ClusterChoice, name: str, *, own_keys: bool) -> FoundRun:
    run = await find_run(client, where, name)
    head, secret = run["metadata"], run["spec"]["storage"].get("credentialsSecret")
    try:
        ledger = await client.get("ConfigMap", head["namespace"], ledger_name(head["name"]))
    except NotFound:
        ledger = None
    secrets = [] if own_keys or secret is None else [await client.get("Secret", head["namespace"], secret)]
    return FoundRun(run, ledger, secrets)
