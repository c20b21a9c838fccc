"""Two layers of refusal, played offline, and the operator as a third behind both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from support.manifests_strategy import manifests, training_run
from support.offline_admission import OfflineAdmission

from videotrain.embedded.store import EmbeddedCluster
from videotrain_api.records import AgentProgress
from videotrain_api.schema import ManifestError
from videotrain_api.signing import derive_signing_key
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import API_VERSION, KIND
from videotrain_operator.reconcile import RunKey, reconcile
from videotrain_operator.simulation.cluster import MASTER_KEY
from videotrain_operator.webhook.review import review_request

Json = dict[str, Any]
ADMISSION = OfflineAdmission()
MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))
OWNED = ("Pod", "ConfigMap")


def problems(manifest: Any) -> str:
    try:
        parse_run(manifest)
    except ManifestError as error:
        return str(error)
    return ""


def offline(manifest: Any) -> tuple[Json, list[str]]:
    """Decided by the CRD alone; what only the decoder of object metadata refuses is left to the real API server."""
    head = manifest.get("metadata") if isinstance(manifest, dict) else None
    assume(isinstance(head, dict) and isinstance(head.get("name"), str))
    assume(set(head) <= {"name"} and (manifest.get("apiVersion"), manifest.get("kind")) == (API_VERSION, KIND))
    return ADMISSION.serve(manifest)


@given(manifests())
@MANY
def test_what_the_models_accept_the_crd_accepts(manifest: Any) -> None:
    _, refusals = offline(manifest)
    assert problems(manifest) or not refusals, refusals


@given(manifests())
@MANY
def test_what_the_models_refuse_the_crd_or_the_webhook_refuses(manifest: Any) -> None:
    served, refusals = offline(manifest)
    verdict = review_request({"operation": "CREATE", "object": served})
    assert bool(problems(manifest)) == bool(refusals or verdict.problems), problems(manifest)
    assert verdict.outcome != "failed"


class Silent:
    """Nobody runs."""

    def signing_key(self, run_uid: str) -> bytes:
        return derive_signing_key(MASTER_KEY, run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        return None


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    opened = EmbeddedCluster(tmp_path / "cluster.sqlite")
    yield opened
    opened.close()


async def look(cluster: EmbeddedCluster, manifest: Json) -> Json:
    """Store a run past the webhook and let the operator look at it."""
    await cluster.apply(manifest, "user")
    key = RunKey(namespace="default", name=manifest["metadata"]["name"])
    for _ in range(3):
        await reconcile(cluster, key, lambda: datetime.now(UTC), Silent())
    return await cluster.get(KIND, "default", key.name)


async def owned(cluster: EmbeddedCluster) -> list[Json]:
    return [body for kind in OWNED for body in await cluster.list(kind, "default")]


def accepted(run: Json) -> Json:
    return next(c for c in run["status"]["conditions"] if c["type"] == "Accepted")


def overlapping(spec: Json) -> None:
    spec["stages"][0]["train"]["buckets"] *= 2


def unknown_preset(spec: Json) -> None:
    spec["model"]["preset"] = "mmdit-huge"


def template_for_an_unknown_part(spec: Json) -> None:
    spec["podTemplate"] = {"spec": {"nodeName": "somewhere"}}


def nested_without_end(spec: Json) -> None:
    deep: Json = {"a": 1}
    for _ in range(150):
        deep = {"a": deep}
    spec["podTemplate"] = {"spec": deep}


def an_autoencoder_without_stages(spec: Json) -> None:
    spec["autoencoder"]["widths"] = []


def a_field_of_the_future(spec: Json) -> None:
    spec["pool"]["gpusPerNodes"] = 8


WAYS = (
    overlapping,
    unknown_preset,
    template_for_an_unknown_part,
    nested_without_end,
    an_autoencoder_without_stages,
    a_field_of_the_future,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_run_written_around_the_webhook_is_invalid_and_creates_nothing(
    way: Any, cluster: EmbeddedCluster
) -> None:
    manifest = training_run("around")
    way(manifest["spec"])
    run = await look(cluster, manifest)
    condition = accepted(run)
    assert (condition["status"], condition["reason"]) == ("False", "Invalid")
    assert condition["observedGeneration"] == run["metadata"]["generation"]
    first = problems(manifest).splitlines()[0].split(": ")[0]
    assert first and first in condition["message"]
    assert await owned(cluster) == []


async def test_a_run_that_is_mended_is_accepted(cluster: EmbeddedCluster) -> None:
    manifest = training_run("around")
    sound = training_run("around")
    overlapping(manifest["spec"])
    await look(cluster, manifest)
    run = await look(cluster, sound)
    assert accepted(run)["status"] == "True" and await owned(cluster)


@given(manifests())
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_no_manifest_stops_the_operator(tmp_path_factory: pytest.TempPathFactory, manifest: Any) -> None:
    served, refusals = offline(manifest)
    assume(not refusals)

    async def one() -> None:
        opened = EmbeddedCluster(tmp_path_factory.mktemp("store") / "cluster.sqlite")
        try:
            run = await look(opened, served)
            refused = bool(problems(served))
            assert accepted(run)["status"] == str(not refused), problems(served)
            assert bool(await owned(opened)) != refused
        finally:
            opened.close()

    asyncio.run(one())
