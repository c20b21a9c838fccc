"""What the models refuse is refused by the API server or by the webhook, and what they accept is accepted.

`VIDEOTRAIN_MANIFESTS` sets how many manifests are generated, `VIDEOTRAIN_MANIFESTS_SEED` which ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from support.controlplane import Run
from support.manifests_strategy import as_kubectl_sends, generated, training_run

from videotrain.controlplane.plane import ControlPlane
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import KIND
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiError, KubeClient, connect
from videotrain_operator.kube.kinds import RUN
from videotrain_operator.webhook.provision import CONFIGURATION
from videotrain_operator.webhook.seats import NoSeat
from videotrain_operator.webhook.server import Webhook

Json = dict[str, Any]
MANIFESTS = int(os.environ.get("VIDEOTRAIN_MANIFESTS", "300"))
START = int(os.environ.get("VIDEOTRAIN_MANIFESTS_SEED", "0"))
AT_ONCE = 16
SECRET = "webhook-tls"
BY_WEBHOOK = "admission webhook"
DRY = {"dryRun": "All", "fieldValidation": "Strict"}


def configuration(name: str, namespace: str, port: int) -> Json:
    """Calls a webhook on this machine about runs of one namespace."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": CONFIGURATION,
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "runs.videotrain.dev",
                "clientConfig": {"url": f"https://127.0.0.1:{port}/validate"},
                "rules": [
                    {
                        "apiGroups": ["videotrain.dev"],
                        "apiVersions": ["v1alpha1"],
                        "resources": ["videotrainingruns"],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "timeoutSeconds": 30,
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


@asynccontextmanager
async def serving(client: KubeClient, namespace: str, name: str) -> AsyncIterator[Webhook]:
    """One replica that answers."""
    webhook = Webhook(
        client,
        port=0,
        service="hooks",
        namespace=namespace,
        secret_namespace=namespace,
        secret=SECRET,
        configuration=name,
    )
    task = asyncio.create_task(webhook.run())
    try:
        async with asyncio.timeout(60):
            while not webhook.ready and not task.done():
                await asyncio.sleep(0.02)
        assert webhook.ready, task.exception()
        yield webhook
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not webhook.ready


@pytest_asyncio.fixture
async def name(admin: KubeClient) -> AsyncIterator[str]:
    """A configuration's name; what bears it is deleted after the test."""
    chosen = f"videotrain-{uuid.uuid4().hex[:8]}"
    yield chosen
    await admin.delete(CONFIGURATION, "", chosen)


@pytest_asyncio.fixture
async def webhook(admin: KubeClient, namespace: str, name: str) -> AsyncIterator[Webhook]:
    """A replica that the API server calls about the test's namespace."""
    async with serving(admin, namespace, name) as replica:
        await register(admin, namespace, name, replica)
        yield replica


async def register(admin: KubeClient, namespace: str, name: str, replica: Webhook) -> None:
    """Create the configuration, let the replica complete it and wait until the API server goes by it."""
    await admin.create(configuration(name, namespace, replica.port), "test")
    assert await replica.look()
    async with asyncio.timeout(60):
        while not (await ask(admin, namespace, twice_wrong())).message.startswith(BY_WEBHOOK):
            await asyncio.sleep(0.1)


def twice_wrong(name: str = "twice-wrong") -> Json:
    """A manifest that the CRD takes and the models refuse, in two places."""
    manifest = training_run(name, ("train", "train"))
    for stage in manifest["spec"]["stages"]:
        stage["train"]["buckets"] *= 2
    return manifest


async def test_the_api_server_comes_again_by_itself_when_too_many_reviews_wait(
    admin: KubeClient, namespace: str, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, refusals = webhook._seats.taken, iter((NoSeat("too many"), NoSeat("too many")))

    def refusing(address: str) -> AbstractAsyncContextManager[None]:
        for refusal in refusals:
            raise refusal
        return taken(address)

    monkeypatch.setattr(webhook._seats, "taken", refusing)
    assert (await ask(admin, namespace, training_run("patient"))).layer == "accepted"
    assert webhook.refused()["busy"] == 2


@dataclass(frozen=True)
class Answer:
    """What the API server said to a manifest."""

    status: int
    message: str

    @property
    def layer(self) -> str:
        """Who decided."""
        if self.status == 201:
            return "accepted"
        if self.message.startswith(BY_WEBHOOK):
            return "webhook"
        return {400: "decoder", 413: "size", 422: "schema and CEL"}.get(self.status, str(self.status))


async def ask(client: KubeClient, namespace: str, manifest: Any) -> Answer:
    """Create without storing."""
    try:
        await client.raw("POST", RUN.path(namespace), as_kubectl_sends(manifest), DRY)
    except ApiError as error:
        return Answer(error.status, str(error).partition(": ")[2])
    return Answer(201, "")


def problems(manifest: Any) -> str:
    try:
        parse_run(manifest)
    except ManifestError as error:
        return str(error)
    return ""


@pytest.mark.timeout(3600)
async def test_the_models_and_the_cluster_agree_on_every_manifest(
    admin: KubeClient, namespace: str, webhook: Webhook
) -> None:
    permits = asyncio.Semaphore(AT_ONCE)

    async def checked(manifest: Any) -> tuple[str, Answer]:
        async with permits:
            return problems(manifest), await ask(admin, namespace, manifest)

    manifests = generated(MANIFESTS, START)
    answers = await asyncio.gather(*map(checked, manifests))
    counts = Counter(("refused" if found else "accepted", answer.layer) for found, answer in answers)
    print(f"{len(manifests)} manifests, seed {START}: {dict(counts)}, webhook {webhook.reviews}")
    wrong = [
        f"models: {found or 'accepted'}\ncluster: {answer}\n{json.dumps(manifest)[:2000]}"
        for manifest, (found, answer) in zip(manifests, answers, strict=True)
        if bool(found) != (answer.status in (400, 413, 422)) or answer.status not in (201, 400, 413, 422)
    ]
    assert not wrong, f"{len(wrong)} disagreements, seed {START}:\n" + "\n\n".join(wrong[:10])
    assert webhook.reviews["failed"] == 0
    assert counts["refused", "webhook"] and counts["refused", "schema and CEL"] and counts["accepted", "accepted"]
    assert await admin.list(KIND, namespace) == []


def apply(kubectl: Run, namespace: str, manifest: Json) -> tuple[int, str]:
    done = kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(manifest), check=False)
    return done.returncode, done.stdout + done.stderr


async def test_kubectl_shows_every_problem_and_nothing_is_stored(
    admin: KubeClient, namespace: str, webhook: Webhook, kubectl: Run
) -> None:
    code, said = await asyncio.to_thread(apply, kubectl, namespace, twice_wrong())
    assert code != 0
    assert "spec.stages[0].train.buckets[1]" in said and "spec.stages[1].train.buckets[1]" in said, said
    with pytest.raises(NotFound):
        await admin.get(KIND, namespace, "twice-wrong")


async def test_kubectl_shows_a_warning_and_takes_the_run(
    admin: KubeClient, namespace: str, webhook: Webhook, kubectl: Run
) -> None:
    manifest = training_run("costly")
    train = manifest["spec"]["stages"][0]["train"]
    train["steps"], train["parallel"] = 10**9, train.get("parallel", {}) | {"microBatchesPerStep": 10**4}
    code, said = await asyncio.to_thread(apply, kubectl, namespace, manifest)
    assert code == 0 and "Warning: spec.budget is not set" in said, said
    assert (await admin.get(KIND, namespace, "costly"))["spec"]["suspend"] is False


async def test_a_manifest_that_most_readers_cannot_read_is_refused(
    namespace: str, webhook: Webhook, kubectl: Run
) -> None:
    manifest = training_run("deep")
    manifest["spec"]["podTemplate"] = {"spec": "DEEP"}
    # As text: Python cannot write it either.
    text = json.dumps(manifest).replace('"DEEP"', '{"a": ' * 5000 + "1" + "}" * 5000)
    done = await asyncio.to_thread(kubectl, "create", "-n", namespace, "-f", "-", stdin=text, check=False)
    assert done.returncode != 0 and "is nested deeper than" in done.stderr, done.stderr[:1000]


async def test_a_change_of_the_pod_template_is_refused(admin: KubeClient, namespace: str, webhook: Webhook) -> None:
    manifest = training_run("fixed")
    manifest["spec"]["podTemplate"] = {"spec": {"enableServiceLinks": False}}
    await admin.create(manifest, "test", namespace)
    with pytest.raises(ApiError, match=r"spec\.podTemplate.*cannot change"):
        await admin.patch(KIND, namespace, "fixed", {"spec": {"podTemplate": {"spec": {"enableServiceLinks": True}}}})
    await admin.patch(KIND, namespace, "fixed", {"spec": {"suspend": True}})


async def test_a_run_that_was_written_around_the_webhook_can_be_mended_suspended_and_deleted(
    admin: KubeClient, namespace: str, name: str
) -> None:
    manifest = twice_wrong("around")
    manifest["metadata"]["finalizers"] = ["videotrain.dev/test"]
    await admin.create(manifest, "test", namespace)
    async with serving(admin, namespace, name) as replica:
        await register(admin, namespace, name, replica)
        await admin.patch(KIND, namespace, "around", {"metadata": {"labels": {"a": "b"}}})
        await admin.patch(KIND, namespace, "around", {"spec": {"suspend": True}})
        await admin.patch(KIND, namespace, "around", {"status": {"stage": "train-0"}}, subresource="status")
        with pytest.raises(ApiError, match=BY_WEBHOOK):
            await admin.patch(
                KIND, namespace, "around", {"spec": {"budget": {"maxGpuHours": 9, "warnAtPercent": [80, 50]}}}
            )
        await admin.delete(KIND, namespace, "around")
        await admin.patch(KIND, namespace, "around", {"metadata": {"finalizers": []}})
        with pytest.raises(NotFound):
            await admin.get(KIND, namespace, "around")


async def served(replica: Webhook) -> bytes:
    """The certificate that a new connection meets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", replica.port, ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


async def test_replicas_share_a_certificate_and_load_a_new_one_without_a_restart(
    admin: KubeClient, namespace: str, name: str, webhook: Webhook
) -> None:
    async with serving(admin, namespace, name) as other:
        old = await served(webhook)
        assert old == await served(other)
        await admin.delete("Secret", namespace, SECRET)
        assert await other.look() and await webhook.look()
        assert old != await served(webhook) == await served(other)
        assert (await ask(admin, namespace, twice_wrong())).layer == "webhook"


async def test_a_body_that_is_no_review_or_too_large_does_no_harm(webhook: Webhook) -> None:
    async with aiohttp.ClientSession(f"https://127.0.0.1:{webhook.port}") as session:
        for body, status in ((b"no json", 400), (b"{}", 400), (b"x" * 9 * 1024 * 1024, 413)):
            async with session.post("/validate", data=body, ssl=False) as answer:
                assert answer.status == status
        async with session.get("/validate", ssl=False) as answer:
            assert answer.status == 405


RIGHTS = (
    ([""], ["secrets"], ["create"], None),
    ([""], ["secrets"], ["get", "update"], [SECRET]),
    (["admissionregistration.k8s.io"], ["validatingwebhookconfigurations"], ["get", "patch"], "name"),
)


async def test_it_needs_no_more_than_the_documented_rights(
    control_plane: ControlPlane, admin: KubeClient, namespace: str, name: str, kubectl: Run
) -> None:
    rules = [
        {"apiGroups": groups, "resources": resources, "verbs": verbs}
        | ({"resourceNames": [name] if names == "name" else names} if names else {})
        for groups, resources, verbs, names in RIGHTS
    ]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": "hooks", "namespace": namespace}
    binding = role | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "hooks", "namespace": namespace}}
    for manifest in (account, role | {"rules": rules}, binding):
        kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    try:
        await admin.create(configuration(name, namespace, 1), "test")
        path = await asyncio.to_thread(control_plane.service_account, namespace, "hooks")
        async with connect(str(path)) as client, serving(client, namespace, name):
            body = await admin.get(CONFIGURATION, "", name)
            assert body["webhooks"][0]["clientConfig"]["caBundle"]
            await admin.delete("Secret", namespace, SECRET)
        async with connect(str(path)) as client, serving(client, namespace, name):
            assert (await admin.get("Secret", namespace, SECRET))["data"]["tls.crt"]
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", name)
