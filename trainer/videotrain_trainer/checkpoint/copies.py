"""Copies of training state in the memory of pods: what lies there, and which copies make a state to go on from.

A copy is one rank's share of the state after a step, as its file in a checkpoint would be, with a signed header beside
it. A pod holds the copies of its own ranks and those of the pod before it. They outlive the workers and not the pod, so
a world that has lost one pod finds every share.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from videotrain_api.schema import ApiModel
from videotrain_api.signing import copy_signature
from videotrain_trainer.checkpoint.fragments import ELEMENT_BYTES
from videotrain_trainer.checkpoint.host_file import checksums_of, mapped_file
from videotrain_trainer.checkpoint.state import BLOCK_BYTES, Member, StoredFile
from videotrain_trainer.files import replacing

HEADER: Final = ".json"
DATA: Final = ".copy"
log = logging.getLogger(__name__)


class CopyHeader(ApiModel):
    """What there is to know of a copy."""

    run: str
    stage: str
    config_hash: str
    generation: int
    """In which it was made."""
    step: int
    """Last one that the state has seen."""
    world_size: int
    """Of that generation: so many copies make the state."""
    captured_at: datetime
    data_cursor: dict[str, Any]
    samples: int
    """Consumed up to this step."""
    proof_after: int
    """Step after which `proof` begins."""
    proof: Any
    """What the rank trained on since then; for whoever makes the order log."""
    file: StoredFile
    """Its name is that of the copy."""


class Offer(NamedTuple):
    """A copy that some rank of the new world can read."""

    generation: int
    step: int
    world_size: int
    rank: int
    """Whose share it is, in the world that made it."""
    proof_after: int
    holder: int
    """Rank of the new world."""
    name: str


def newest_set(offers: Iterable[Offer], stored_step: int) -> list[Offer] | None:
    """The copies to go on from, by rank of the world that made them; None if the newest checkpoint is better.

    They are of one step of one generation, and hold every share. The newest generation decides before the step: once
    it has begun, what an older one did beyond the state that it went on from does not count.

    Args:
        offers: copies of all pods; of one share there may be several.
        stored_step: of the newest complete checkpoint; 0 for none. Copies must not be older, and must tell what was
            trained on since.
    """
    sets: defaultdict[tuple[int, int, int], dict[int, Offer]] = defaultdict(dict)
    for offer in offers:
        if offer.step >= max(stored_step, 1) and offer.proof_after <= stored_step:
            sets[offer.generation, offer.step, offer.world_size].setdefault(offer.rank, offer)
    whole = [key for key, found in sets.items() if found.keys() >= set(range(key[2]))]
    if not whole:
        return None
    best = max(whole)
    return [sets[best][rank] for rank in range(best[2])]


@dataclass(frozen=True)
class CopyFolder:
    """The copies in one pod's memory.

    Args:
        place: the folder, shared by the pod's workers.
        key: the run's signing key.
        member: this process; copies of another run, stage or configuration are not for it.
    """

    place: Path
    key: bytes
    member: Member

    def name(self, rank: int, half: int) -> str:
        """Of a copy of this generation."""
        return f"{self.member.stage}.g{self.member.generation:06d}-{rank:05d}-{half}"

    def data(self, name: str) -> Path:
        """The file with a copy's bytes."""
        return self.place / f"{name}{DATA}"

    def seal(self, header: CopyHeader) -> bytes:
        """The header as it is stored and sent, with its signature."""
        body = header.model_dump_json(by_alias=True)
        return json.dumps({"header": body, "signature": copy_signature(self.key, body.encode())}).encode()

    def unseal(self, sealed: bytes) -> CopyHeader:
        """A header that whoever has the key has sealed.

        Raises:
            ValueError: it is none, or is not signed with the run's key, or is of another run, stage or configuration.
        """
        fields = json.loads(sealed)
        body = str(fields["header"]).encode() if isinstance(fields, dict) and "header" in fields else b""
        if not hmac.compare_digest(str(fields.get("signature") if body else "").encode(), self.signed(body)):
            raise ValueError("it is not signed with the run's key")
        header = CopyHeader.model_validate_json(body)
        member = self.member
        if (header.run, header.stage, header.config_hash) != (member.run, member.stage, member.config_hash):
            raise ValueError(f"it is of stage {header.stage!r} of run {header.run!r}, or of another configuration")
        return header

    def signed(self, body: bytes) -> bytes:
        """The signature of a header, as it is written."""
        return copy_signature(self.key, body).encode()

    def publish(self, name: str, sealed: bytes) -> None:
        """Make a copy count, whose bytes are in place."""
        with replacing(self.place / f"{name}{HEADER}") as partial:
            partial.write_bytes(sealed)

    def withdraw(self, name: str) -> None:
        """Make a copy count no more; its bytes stay, to be written over."""
        (self.place / f"{name}{HEADER}").unlink(missing_ok=True)

    def found(self) -> dict[str, CopyHeader]:
        """The copies that count, by name."""
        headers: dict[str, CopyHeader] = {}
        for path in sorted(self.place.glob(f"*{HEADER}")):
            try:
                headers[path.name.removesuffix(HEADER)] = self.unseal(path.read_bytes())
            except FileNotFoundError:
                continue  # another worker of the pod has removed it
            except (ValueError, ValidationError) as error:
                log.warning("%s is no copy to go on from: %s", path, error)
        return headers

    def is_whole(self, name: str, header: CopyHeader) -> bool:
        """Whether a copy's bytes fit their checksums."""
        path = self.data(name)
        if not path.is_file() or path.stat().st_size != header.file.bytes:
            return False
        data = mapped_file(path, header.file.bytes).numpy().data
        return checksums_of(data, BLOCK_BYTES) == (header.file.crc32c, header.file.block_crc32c)

    def vector(self, name: str, size: int, start: int, length: int) -> Tensor:
        """(length,) float32: one vector of a copy, whose pages are read when they are looked at.

        Args:
            name: of the copy.
            size: bytes of it.
            start: first byte of the vector.
            length: elements.
        """
        return mapped_file(self.data(name), size)[start : start + ELEMENT_BYTES * length].view(torch.float32)

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove the copies of this stage, but for some; headers first, so that none counts without its bytes."""
        for suffix in (HEADER, DATA):
            for path in self.place.glob(f"{self.member.stage}.*{suffix}"):
                if path.name.removesuffix(suffix) not in keep:
                    path.unlink(missing_ok=True)
