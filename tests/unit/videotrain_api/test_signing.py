"""Signatures between operator and agents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videotrain_api.signing import (
    HEADER_NONCE,
    HEADER_SIGNATURE,
    HEADER_TIME,
    KEY_BYTES,
    MOST_NONCES,
    PROOF_BYTES,
    WINDOW_US,
    Answer,
    Meeting,
    Nonces,
    Request,
    SignatureError,
    SkewError,
    derive_signing_key,
    derive_world_key,
    key_digest,
)

MASTER = bytes(range(KEY_BYTES))
KEY = derive_signing_key(MASTER, "uid-1")
NOW = 1_700_000_000_000_000
REQUEST = Request(recipient="10.0.0.1", method="POST", target="/roster?a=1", body=b"{}")
ANSWER = Answer(status=200, etag="tag", body=b"{}")


def taken(request: Request, headers: dict[str, str], *, key: bytes = KEY, now: int = NOW) -> str:
    return request.verify(key, headers, now_us=now, nonces=Nonces())


def test_each_run_and_each_master_has_a_key_of_its_own() -> None:
    keys = [derive_signing_key(m, u) for m in (MASTER, MASTER[::-1]) for u in ("uid-1", "uid-2", "")]
    assert len(set(keys)) == len(keys)
    assert len({key_digest(key) for key in keys}) == len(keys)
    assert {len(key) for key in keys} == {KEY_BYTES}
    with pytest.raises(ValueError, match="31 bytes"):
        derive_signing_key(MASTER[1:], "uid")


def test_what_is_signed_is_taken() -> None:
    assert taken(REQUEST, REQUEST.sign(KEY, time_us=NOW, nonce="n")) == "n"
    assert ANSWER.verify(KEY, "n", ANSWER.sign(KEY, "n", time_us=NOW)) == NOW


@pytest.mark.parametrize(
    "change",
    [{"recipient": "10.0.0.2"}, {"method": "GET"}, {"target": "/roster?a=2"}, {"body": b"{} "}, {"target": "/roster"}],
)
def test_a_request_is_signed_over_all_that_it_means(change: dict[str, str]) -> None:
    headers = REQUEST.sign(KEY, time_us=NOW, nonce="n")
    with pytest.raises(SignatureError):
        taken(replace(REQUEST, **change), headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (HEADER_TIME, str(NOW + 1)),
        (HEADER_TIME, "soon"),
        (HEADER_TIME, "9" * 5000),
        (HEADER_TIME, "\u0661"),
        (HEADER_NONCE, "m"),
        (HEADER_NONCE, ""),
        (HEADER_NONCE, "n" * 65),
        (HEADER_SIGNATURE, "0" * 64),
        (HEADER_SIGNATURE, "\udcff"),
    ],
)
def test_no_header_can_be_changed(name: str, value: str) -> None:
    with pytest.raises(SignatureError):
        taken(REQUEST, REQUEST.sign(KEY, time_us=NOW, nonce="n") | {name: value})


def test_a_missing_header_is_a_missing_signature() -> None:
    headers = REQUEST.sign(KEY, time_us=NOW, nonce="n")
    for name in headers:
        with pytest.raises(SignatureError):
            taken(REQUEST, {key: value for key, value in headers.items() if key != name})


@pytest.mark.parametrize("change", [{"status": 401}, {"etag": ""}, {"body": b""}])
def test_an_answer_is_signed_over_all_that_it_means(change: dict[str, int]) -> None:
    headers = ANSWER.sign(KEY, "n", time_us=NOW)
    with pytest.raises(SignatureError):
        replace(ANSWER, **change).verify(KEY, "n", headers)  # type: ignore[arg-type]
    with pytest.raises(SignatureError):
        ANSWER.verify(KEY, "other", headers)
    with pytest.raises(SignatureError):
        ANSWER.verify(derive_signing_key(MASTER, "uid-2"), "n", headers)


@pytest.mark.parametrize("by", [-WINDOW_US - 1, WINDOW_US + 1])
def test_time_alone_is_told_apart_from_another_key(by: int) -> None:
    headers = REQUEST.sign(KEY, time_us=NOW + by, nonce="n")
    with pytest.raises(SkewError):
        taken(REQUEST, headers)
    with pytest.raises(SignatureError) as caught:
        taken(REQUEST, headers, key=MASTER)
    assert not isinstance(caught.value, SkewError)


def test_nonces_are_remembered_for_the_window_and_not_for_ever() -> None:
    nonces = Nonces()
    headers = REQUEST.sign(KEY, time_us=NOW, nonce="n")
    REQUEST.verify(KEY, headers, now_us=NOW, nonces=nonces)
    with pytest.raises(SignatureError, match="before"):
        REQUEST.verify(KEY, headers, now_us=NOW + WINDOW_US, nonces=nonces)
    for number in range(MOST_NONCES + 10):
        nonces.take(f"n{number}", NOW, NOW)
    assert len(nonces._taken) == MOST_NONCES
    nonces.take("late", NOW + 2 * WINDOW_US, NOW + 2 * WINDOW_US)
    assert list(nonces._taken) == ["late"]


def test_each_generation_of_each_run_has_a_world_key_of_its_own() -> None:
    worlds = [(KEY, "uid-1", 1), (KEY, "uid-1", 2), (KEY, "uid-1", 12), (KEY, "uid-2", 1), (MASTER, "uid-1", 1)]
    keys = {derive_world_key(*world) for world in worlds}
    assert len(keys) == len(worlds)
    assert not keys & {KEY, MASTER}


def test_a_proof_fits_one_connection_one_end_and_one_generation() -> None:
    world = derive_world_key(KEY, "uid-1", 1)
    here, there = bytes(PROOF_BYTES), b"n" * PROOF_BYTES
    meetings = [
        Meeting(world, here, there),
        Meeting(world, there, here),
        Meeting(world, here, here),
        Meeting(derive_world_key(KEY, "uid-1", 2), here, there),
    ]
    proofs = [proof for meeting in meetings for proof in (meeting.guest_proof(), meeting.host_proof())]
    assert len(set(proofs)) == len(proofs)
    assert {len(proof) for proof in proofs} == {PROOF_BYTES}
