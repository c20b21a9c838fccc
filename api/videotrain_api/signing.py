"""How the operator and the agents of a run prove to each other who speaks: HMAC-SHA256 under the run's signing key.

A request is signed over everything that it means: its recipient, method, path with query, time, nonce and body. The
answer is signed over the nonce of its request, so that it fits no other. Both are told in headers. Pure: time and nonce
are arguments, and what a recipient must remember of earlier requests is in `Nonces`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

KEY_BYTES: Final = 32
"""Length of a master key and of the signing keys derived from it."""
HEADER_TIME: Final = "Videotrain-Time"
"""Of a request: when it was signed, microseconds since 1970. Of an answer: its sender's clock."""
HEADER_NONCE: Final = "Videotrain-Nonce"
HEADER_SIGNATURE: Final = "Videotrain-Signature"
WINDOW_US: Final = 60_000_000
"""A request is taken for so long before and after its time."""
MOST_NONCES: Final = 65_536
"""Requests of one window that are remembered; a sender with the key that makes more can be replayed, by others only
within the window."""
LONGEST_NONCE: Final = 64
PROOF_BYTES: Final = 32
"""Length of the nonces and of the proofs by which members of a world meet."""
_REQUEST, _ANSWER, _DERIVED, _NAME = b"videotrain request 1", b"videotrain answer 1", b"videotrain key 1", b"name"
_COPY = b"videotrain copy 1"
_WORLD, _GUEST, _HOST = b"videotrain world 1", b"videotrain guest 1", b"videotrain host 1"


class SignatureError(Exception):
    """A request or an answer does not prove that its sender holds the key."""


class SkewError(SignatureError):
    """A request was signed with the key, at a time that its recipient's clock does not allow."""


def derive_signing_key(master: bytes, run_uid: str) -> bytes:
    """The signing key of a run: a name of 32 bytes that only the holder of the master key can compute.

    Raises:
        ValueError: the master key is shorter than KEY_BYTES.
    """
    if len(master) < KEY_BYTES:
        raise ValueError(f"a master key of {len(master)} bytes: at least {KEY_BYTES} are needed")
    return _mac(master, _DERIVED, run_uid.encode())


@lru_cache(maxsize=1024)
def key_digest(key: bytes) -> str:
    """Eight letters that tell signing keys apart and tell nothing else about them."""
    return _mac(key, _NAME).hex()[:8]


@dataclass(frozen=True)
class Meeting:
    """One connection between two members of a world: host and guest prove to each other that they hold its key.

    The host sends its nonce, the guest its own with `guest_proof`, the host `host_proof`. A proof fits one connection
    and one of the two, so none can be sent back to who made it.
    """

    world_key: bytes
    """Of one generation; see derive_world_key."""
    host_nonce: bytes
    guest_nonce: bytes

    def guest_proof(self) -> bytes:
        """PROOF_BYTES that only a guest with the key can send."""
        return _mac(self.world_key, _GUEST, self.host_nonce, self.guest_nonce)

    def host_proof(self) -> bytes:
        """PROOF_BYTES that only a host with the key can send."""
        return _mac(self.world_key, _HOST, self.host_nonce, self.guest_nonce)


def derive_world_key(key: bytes, run_uid: str, generation: int) -> bytes:
    """The key by which the members of one generation know each other; another generation has another.

    Args:
        key: the run's signing key.
        run_uid: UID of the run.
        generation: number of the generation.
    """
    return _mac(key, _WORLD, run_uid.encode(), str(generation).encode())


def copy_signature(key: bytes, header: bytes) -> str:
    """The signature of a copy of training state by what describes it; 64 hex digits.

    Args:
        key: the run's signing key.
        header: tells all there is to know of the copy, the checksums of its bytes among it.
    """
    return _mac(key, _COPY, header).hex()


def same_proof(left: bytes, right: bytes) -> bool:
    """Compare two proofs in a time that tells nothing of where they differ."""
    return hmac.compare_digest(left, right)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a signature of a request is about."""

    recipient: str
    """The pod IP that is asked, as the recipient itself writes it."""
    method: str
    target: str
    """Path with query, as it stands in the request line."""
    body: bytes = b""

    def sign(self, key: bytes, *, time_us: int, nonce: str) -> dict[str, str]:
        """The headers to send with it."""
        signature = self._signature(key, str(time_us), nonce)
        return {HEADER_TIME: str(time_us), HEADER_NONCE: nonce, HEADER_SIGNATURE: signature}

    def verify(self, key: bytes, headers: Mapping[str, str], *, now_us: int, nonces: Nonces) -> str:
        """The nonce, under which the answer is to be signed.

        Args:
            key: the run's signing key.
            headers: of the request; a mapping that does not mind the case of names.
            now_us: the recipient's clock, microseconds since 1970.
            nonces: what the recipient has taken so far.

        Raises:
            SkewError: the signature is right, the time is not.
            SignatureError: it is not signed with this key, or was taken before.
        """
        time, nonce = headers.get(HEADER_TIME, ""), headers.get(HEADER_NONCE, "")
        signature = headers.get(HEADER_SIGNATURE, "")
        if not (0 < len(nonce) <= LONGEST_NONCE and time.isascii() and time.isdigit() and len(time) < LONGEST_NONCE):
            raise SignatureError("the request is not signed")
        if not _same(signature, self._signature(key, time, nonce)):
            raise SignatureError("the request is not signed with the run's key")
        if abs(int(time) - now_us) > WINDOW_US:
            seconds = (int(time) - now_us) / 1_000_000
            raise SkewError(f"the request was signed {seconds:+.0f} s from now; {WINDOW_US // 1_000_000} s are allowed")
        nonces.take(nonce, int(time), now_us)
        return nonce

    def _signature(self, key: bytes, time: str, nonce: str) -> str:
        texts = (self.recipient, self.method, self.target, time, nonce)
        return _mac(key, _REQUEST, *(text.encode(errors="surrogateescape") for text in texts), self.body).hex()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a signature of an answer is about."""

    status: int
    etag: str = ""
    """The header ETag; empty if there is none."""
    body: bytes = b""

    def sign(self, key: bytes, nonce: str, *, time_us: int) -> dict[str, str]:
        """The headers to send with it.

        Args:
            key: the run's signing key.
            nonce: of the request that it answers.
            time_us: the sender's clock.
        """
        return {HEADER_TIME: str(time_us), HEADER_SIGNATURE: self._signature(key, nonce, str(time_us))}

    def verify(self, key: bytes, nonce: str, headers: Mapping[str, str]) -> int:
        """The clock of its sender, microseconds since 1970.

        Raises:
            SignatureError: it is not signed with this key, or answers something else.
        """
        time = headers.get(HEADER_TIME, "")
        if not (time.isascii() and time.isdigit() and len(time) < LONGEST_NONCE):
            raise SignatureError("the answer is not signed")
        if not _same(headers.get(HEADER_SIGNATURE, ""), self._signature(key, nonce, time)):
            raise SignatureError("the answer is not signed with the run's key")
        return int(time)

    def _signature(self, key: bytes, nonce: str, time: str) -> str:
        texts = (nonce, time, str(self.status), self.etag)
        return _mac(key, _ANSWER, *(text.encode(errors="surrogateescape") for text in texts), self.body).hex()


class Nonces:
    """The requests that one recipient has taken, so that none is taken twice. Not safe for threads."""

    def __init__(self) -> None:
        self._taken: OrderedDict[str, int] = OrderedDict()

    def take(self, nonce: str, time_us: int, now_us: int) -> None:
        """Remember the nonce of a request whose signature is right.

        Raises:
            SignatureError: it was taken before.
        """
        if nonce in self._taken:
            raise SignatureError("the request was taken before")
        self._taken[nonce] = time_us
        # In the order of arrival: one from a clock that runs ahead stays a little longer than it must.
        while len(self._taken) > MOST_NONCES or now_us - next(iter(self._taken.values())) > WINDOW_US:
            self._taken.popitem(last=False)


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(errors="surrogateescape"), right.encode())


def _mac(key: bytes, *parts: bytes) -> bytes:
    """HMAC over parts that cannot run into each other: the digest of each stands for it."""
    return hmac.digest(key, b"".join(hashlib.sha256(part).digest() for part in parts), "sha256")
