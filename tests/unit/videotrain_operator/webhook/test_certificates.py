"""One certificate for all replicas: made once, renewed in time, repaired, and never served before it is trusted."""

from __future__ import annotations

import base64
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from support.webhook_store import CONFIGURATION, SECRET, WebhookStore

from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.kube.client import ApiError
from videotrain_operator.webhook.certificates import (
    AUTHORITY_LIFE,
    OVERLAP,
    SERVING_LIFE,
    SKEW,
    Material,
    certificates_pem,
    fingerprint,
    key_pem,
    new_authority,
    new_serving,
    service_names,
    settle,
)
from videotrain_operator.webhook.provision import Provisioner, UnusableSecret

START = datetime(2026, 1, 1, tzinfo=UTC)
NAME = "videotrain-webhook.videotrain.svc"
HOUR = timedelta(hours=1)
LATER = 2 * OVERLAP


def provisioner(store: WebhookStore, service: str = "videotrain-webhook") -> Provisioner:
    client: Any = store
    names = service_names(service, "videotrain")
    return Provisioner(client, names=names, namespace="videotrain", secret=SECRET, configuration=CONFIGURATION)


def verify(certificate: x509.Certificate | None, bundle: bytes, now: datetime, name: str = NAME) -> None:
    """As the API server does; raises VerificationError."""
    assert certificate is not None
    trusted = Store(x509.load_pem_x509_certificates(bundle))
    PolicyBuilder().store(trusted).time(now).build_server_verifier(x509.DNSName(name)).verify(certificate, [])


def certificate_of(store: WebhookStore) -> x509.Certificate:
    return x509.load_pem_x509_certificate(store.secret["tls.crt"])


def authorities_of(store: WebhookStore) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(store.secret["ca.crt"])


@pytest.fixture
def store() -> WebhookStore:
    return WebhookStore()


async def test_the_first_look_makes_a_certificate_that_the_api_server_trusts(store: WebhookStore) -> None:
    material = await provisioner(store).look(START)
    assert store.bundles == [store.secret["ca.crt"]] * 2
    assert material.certificate == certificate_of(store)
    for name in (NAME, "videotrain-webhook", "videotrain-webhook.videotrain", "localhost"):
        verify(material.certificate, store.bundles[0], START, name)
    with pytest.raises(VerificationError):
        verify(material.certificate, store.bundles[0], START, "elsewhere.videotrain.svc")


async def test_a_server_whose_clock_is_behind_takes_it(store: WebhookStore) -> None:
    material = await provisioner(store).look(START)
    verify(material.certificate, store.bundles[0], START - SKEW)


async def test_looking_again_writes_nothing(store: WebhookStore) -> None:
    first = await provisioner(store).look(START)
    store.writes.clear()
    for days in (0, 1, 200):
        assert (await provisioner(store).look(START + timedelta(days=days))).certificate == first.certificate
    assert store.writes == []


async def test_a_replica_that_comes_second_takes_what_the_first_made(store: WebhookStore) -> None:
    made: list[Material] = []

    async def interfere() -> None:
        made.append(await provisioner(store).look(START))

    store.before_write = interfere
    second = await provisioner(store).look(START)
    assert second.certificate == made[0].certificate == certificate_of(store)
    assert store.writes.count("Secret") == 1 and store.bundles == [store.secret["ca.crt"]] * 2


async def test_the_serving_certificate_is_renewed_by_the_same_authority(store: WebhookStore) -> None:
    old = await provisioner(store).look(START)
    due = START + SERVING_LIFE * 2 / 3 + HOUR
    new = await provisioner(store).look(due)
    assert new.certificate != old.certificate and new.key != old.key
    assert new.authorities == old.authorities
    verify(new.certificate, store.bundles[0], due + SERVING_LIFE - HOUR)


async def test_a_new_authority_signs_only_once_it_is_trusted(store: WebhookStore) -> None:
    due = START + AUTHORITY_LIFE * 2 / 3 + HOUR
    old = await provisioner(store).look(due - SERVING_LIFE / 3)  # a serving certificate that is not due yet
    first = fingerprint(authorities_of(store)[0])
    store.objects["Secret"] = _aged(store, old, START, due - SERVING_LIFE / 3)

    announced = await provisioner(store).look(due)
    assert len(announced.authorities) == 2 and announced.certificate == certificate_of(store)
    assert fingerprint(announced.authorities[0]) != first
    verify(announced.certificate, store.bundles[0], due)

    signed = await provisioner(store).look(due + HOUR)
    assert signed.certificate != announced.certificate
    for certificate in (announced.certificate, signed.certificate):  # replicas that have not looked yet serve the old
        verify(certificate, store.bundles[0], due + HOUR)

    ended = await provisioner(store).look(due + HOUR + LATER)
    assert ended.certificate == signed.certificate and len(ended.authorities) == 1
    assert store.bundles == [store.secret["ca.crt"]] * 2
    with pytest.raises(VerificationError):
        verify(announced.certificate, store.bundles[0], due + HOUR + LATER)


def _aged(store: WebhookStore, material: Material, authority_from: datetime, serving_from: datetime) -> Any:
    """The Secret with an authority that was made long ago, and a bundle that trusts it."""
    authority, key = new_authority(authority_from)
    names = [NAME, "videotrain-webhook", "videotrain-webhook.videotrain", f"{NAME}.cluster.local"]
    certificate, serving_key = new_serving(authority, key, names, serving_from)
    parts = {
        "ca.crt": certificates_pem([authority]),
        "ca.key": key_pem(key),
        "tls.crt": certificates_pem([certificate]),
        "tls.key": key_pem(serving_key),
    }
    data = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    for hook in store.objects["ValidatingWebhookConfiguration"]["webhooks"]:
        hook["clientConfig"]["caBundle"] = data["ca.crt"]
    return store.objects["Secret"] | {"data": data}


async def test_an_untrusted_authority_does_not_sign_while_the_old_certificate_serves(store: WebhookStore) -> None:
    old = await provisioner(store).look(START)
    authority, key = new_authority(START)
    held = Material(
        authorities=(authority, *old.authorities), authority_key=key, certificate=old.certificate, key=old.key
    )
    names = ["videotrain-webhook"]
    assert settle(held, names, START, frozenset({fingerprint(old.authorities[0])})) == held
    trusted = frozenset(map(fingerprint, held.authorities))
    assert settle(held, names, START, trusted).certificate != old.certificate


async def test_another_service_gets_a_certificate_of_its_own_name(store: WebhookStore) -> None:
    await provisioner(store).look(START)
    material = await provisioner(store, "renamed").look(START + HOUR)
    verify(material.certificate, store.bundles[0], START + HOUR, "renamed.videotrain.svc")


DAMAGE = {
    "no base64": lambda data: data.update({"tls.crt": "%"}),
    "no certificate": lambda data: data.update({"tls.crt": base64.b64encode(b"x").decode()}),
    "another key": lambda data: data.update({"tls.key": data["ca.key"]}),
    "a missing key": lambda data: data.pop("tls.key"),
    "no authority": lambda data: data.update({"ca.crt": ""}),
    "a lost authority key": lambda data: data.pop("ca.key"),
    "everything": lambda data: data.update(dict.fromkeys(data, "")),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_broken_secret_is_repaired_and_told(
    damage: str, store: WebhookStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = await provisioner(store).look(START)
    DAMAGE[damage](store.objects["Secret"]["data"])
    for hours in range(3):
        material = await provisioner(store).look(START + hours * HOUR)
        verify(material.certificate, store.bundles[0], START + hours * HOUR)
        verify(before.certificate, store.bundles[0], START + hours * HOUR)  # replicas that did not look yet
    assert certificate_of(store) == material.certificate
    assert [r.levelname for r in caplog.records if "repaired" in r.message] == ["WARNING"]
    await provisioner(store).look(START + LATER)
    assert store.bundles == [store.secret["ca.crt"]] * 2


async def test_a_deleted_secret_is_made_again(store: WebhookStore) -> None:
    old = await provisioner(store).look(START)
    del store.objects["Secret"]
    new = await provisioner(store).look(START + HOUR)
    for certificate in (old.certificate, new.certificate):
        verify(certificate, store.bundles[0], START + HOUR)


async def test_a_bundle_that_somebody_emptied_is_filled_again(store: WebhookStore) -> None:
    await provisioner(store).look(START)
    hooks = store.objects["ValidatingWebhookConfiguration"]["webhooks"]
    hooks[0]["clientConfig"]["caBundle"] = ""
    hooks[1]["clientConfig"]["caBundle"] = "%%%"
    await provisioner(store).look(START)
    assert store.bundles == [store.secret["ca.crt"]] * 2


async def test_replicas_that_write_at_once_agree(store: WebhookStore) -> None:
    await provisioner(store).look(START)
    due = START + SERVING_LIFE * 2 / 3 + HOUR
    first, second = provisioner(store), provisioner(store)
    rival: list[Material] = []

    async def interfere() -> None:
        rival.append(await second.look(due))

    store.before_write = interfere
    assert (await first.look(due)).certificate == rival[0].certificate == certificate_of(store)


async def test_a_configuration_that_changed_meanwhile_is_left_for_the_next_look(store: WebhookStore) -> None:
    async def touch() -> None:
        store.before_write = touch
        store.objects["ValidatingWebhookConfiguration"]["metadata"]["resourceVersion"] += "1"

    store.before_write = touch
    with pytest.raises(Conflict):
        await provisioner(store).look(START)
    store.before_write = None
    await provisioner(store).look(START)
    assert store.bundles == [store.secret["ca.crt"]] * 2


async def test_without_a_configuration_it_serves_and_says_once_that_nobody_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = WebhookStore(configured=False)
    one = provisioner(store)
    for hours in range(2):
        assert (await one.look(START + hours * HOUR)).certificate is not None
    assert len([r for r in caplog.records if "nobody will call" in r.message]) == 1


async def test_an_api_server_that_is_away_is_not_taken_for_an_empty_one(store: WebhookStore) -> None:
    await provisioner(store).look(START)
    store.down = True
    before = copy.deepcopy(store.objects)
    with pytest.raises(ApiError):
        await provisioner(store).look(START)
    assert store.objects == before


async def given_by_others(store: WebhookStore) -> None:
    """A Secret as cert-manager makes it: no annotation of ours, no key of the authority."""
    await provisioner(store).look(START)
    store.objects["Secret"]["metadata"]["annotations"] = {}
    del store.objects["Secret"]["data"]["ca.key"]


async def test_a_secret_of_somebody_else_is_used_and_never_written(store: WebhookStore) -> None:
    await given_by_others(store)
    store.writes.clear()
    for days in (0, 300, 400):
        assert (await provisioner(store).look(START + timedelta(days=days))).certificate == certificate_of(store)
    assert store.writes == []


async def test_a_secret_of_somebody_else_that_cannot_serve_is_refused(store: WebhookStore) -> None:
    await given_by_others(store)
    del store.objects["Secret"]["data"]["tls.key"]
    with pytest.raises(UnusableSecret, match=r"videotrain/webhook-tls was not made by videotrain.*tls.key: is missing"):
        await provisioner(store).look(START)


async def test_a_bundle_that_cert_manager_injects_is_left_alone(store: WebhookStore) -> None:
    await given_by_others(store)
    configuration = store.objects["ValidatingWebhookConfiguration"]
    configuration["metadata"]["annotations"] = {"cert-manager.io/inject-ca-from": "videotrain/webhook"}
    for hook in configuration["webhooks"]:
        hook["clientConfig"]["caBundle"] = ""
    await provisioner(store).look(START)
    assert store.bundles == [b"", b""]
