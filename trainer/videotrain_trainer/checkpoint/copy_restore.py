"""Going on from copies in memory: agree on the newest whole set, see that it is undamaged, and share it out anew."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from videotrain_trainer.checkpoint.copies import CopyFolder, CopyHeader, Offer, newest_set
from videotrain_trainer.checkpoint.fragments import Copy, StoredPieces, coverage_problems
from videotrain_trainer.checkpoint.load import PART_ELEMENTS, Peers
from videotrain_trainer.sharded_state import Piece, Quantity, ShardedState, in_parts, pack, packed_length

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class SwappingPeers(Peers, Protocol):
    """Peers that also swap vectors."""

    def table(self, row: Sequence[float]) -> Tensor:
        """(ranks, len(row)) float64: the rows of all ranks."""

    def swap(self, messages: Sequence[Tensor]) -> list[Tensor]:
        """One vector to each rank, and one from each, by rank; all of one data type, on the CPU."""


class HeldCopy(NamedTuple):
    """A chosen copy, as all ranks know it."""

    holder: int
    name: str
    bytes: int
    vectors: dict[Quantity, int]
    pieces: list[tuple[str, int, int]]


@dataclass(frozen=True)
class Restored:
    """Where training goes on."""

    step: int
    generation: int
    """That made the copies."""
    data_cursor: dict[str, Any]
    samples: int
    proof: list[Any]
    """Of each rank of that generation, what its copy tells of the samples; on rank 0 only."""
    names: list[str]
    """Of all copies of that step in this pod, whether they were needed or not: another pod may be lost at once."""


class _Facts(NamedTuple):
    step: int
    generation: int
    data_cursor: dict[str, Any]
    samples: int


_OFFERS: Final = TypeAdapter(list[Offer])
_CHOSEN: Final = TypeAdapter(list[Offer] | None)
_NAMES: Final = TypeAdapter(list[str])
_FLAG: Final = TypeAdapter(bool)
_HEADERS: Final = TypeAdapter(list[CopyHeader])
_HELD: Final = TypeAdapter(list[HeldCopy])
_FACTS: Final = TypeAdapter(_Facts)


def restore_copies(
    folder: CopyFolder, node_ranks: int, stored_step: int, state: ShardedState, peers: SwappingPeers
) -> Restored | None:
    """Fill `state` from copies in the pods' memory, if they make a state that is no older than the newest checkpoint.

    Collective. A copy whose bytes do not fit its checksums is refused; another one of the same share takes its place,
    or an older set, or none.

    Args:
        folder: of this pod.
        node_ranks: ranks of each pod.
        stored_step: of the newest complete checkpoint; 0 for none.
        state: share of this rank; its values count once this has returned something.
        peers: the other ranks.
    """
    rank = folder.member.rank
    # The ranks of a pod see the same copies: each speaks for those whose turn it is.
    turn = rank % node_ranks
    headers = {name: header for name, header in folder.found().items() if header.file.rank % node_ranks == turn}
    own = [
        Offer(header.generation, header.step, header.world_size, header.file.rank, header.proof_after, rank, name)
        for name, header in headers.items()
        if set(header.file.vectors) == set(state.quantities)
    ]
    chosen = _choose(folder, headers, own, stored_step, peers)
    if chosen is None:
        return None
    mine = [headers[offer.name] for offer in chosen if offer.holder == rank]
    told = peers.to_first(_HEADERS, mine)
    held, facts, proof = _first_tells(told, chosen, state, peers)
    if held is None:
        return None
    _fill(_Library(folder, held, node_ranks), state, peers)
    moment = (facts.generation, facts.step)
    names = [name for name, header in folder.found().items() if (header.generation, header.step) == moment]
    return Restored(facts.step, facts.generation, facts.data_cursor, facts.samples, proof, names)


def _choose(
    folder: CopyFolder, headers: dict[str, CopyHeader], own: list[Offer], stored_step: int, peers: SwappingPeers
) -> list[Offer] | None:
    """Agree on a set of which every copy is undamaged."""
    offers = [offer for found in peers.to_first(_OFFERS, own) for offer in found]
    if peers.rank == 0 and not offers:
        log.info("there are no copies of the state in memory")
    while True:
        chosen = peers.from_first(_CHOSEN, newest_set(offers, stored_step) if peers.rank == 0 else None)
        if chosen is None:
            if peers.rank == 0 and offers:
                log.warning("%s", _why_none(offers, stored_step))
            return None
        wanted = [offer.name for offer in chosen if offer.holder == folder.member.rank]
        damaged = [name for name in wanted if not folder.is_whole(name, headers[name])]
        for name in damaged:
            log.error("copy %s does not fit its checksums; it is refused", folder.data(name))
            folder.withdraw(name)
        told = peers.to_first(_NAMES, damaged)
        bad = {(holder, name) for holder, names in enumerate(told) for name in names}
        offers = [offer for offer in offers if (offer.holder, offer.name) not in bad]
        if peers.from_first(_FLAG, not bad):
            return chosen


def _why_none(offers: Sequence[Offer], stored_step: int) -> str:
    newest = max(offer.step for offer in offers)
    sizes = {offer.world_size for offer in offers if offer.step == newest}
    there = len({offer.rank for offer in offers if offer.step == newest})
    return (
        f"copies in memory reach step {newest}, with {there} of {max(sizes)} shares; the newest checkpoint, of step "
        f"{stored_step}, is taken, since no set of them is whole, undamaged and as new"
    )


def _first_tells(
    told: list[list[CopyHeader]], chosen: list[Offer], state: ShardedState, peers: SwappingPeers
) -> tuple[list[HeldCopy] | None, _Facts, list[Any]]:
    """What all need to know of the chosen copies: where each lies and what is in it."""
    held: list[HeldCopy] | None = None
    facts, proof = None, list[Any]()
    if peers.rank == 0:
        by_rank = {header.file.rank: header for found in told for header in found}
        headers = [by_rank[offer.rank] for offer in chosen]
        held = [
            HeldCopy(offer.holder, offer.name, h.file.bytes, h.file.vectors, h.file.pieces)
            for offer, h in zip(chosen, headers, strict=True)
        ]
        first = headers[0]
        facts = _Facts(first.step, first.generation, first.data_cursor, first.samples)
        proof = [header.proof for header in headers]
        shapes = {name: list(shape) for name, shape in state.shapes.items()}
        problems = coverage_problems(shapes, [pack(copy.pieces) for copy in held])
        if problems:
            log.error("copies of step %d do not make a whole state: %s", first.step, "; ".join(problems[:5]))
            held = []
    shared = peers.from_first(_HELD, held)
    return shared or None, peers.from_first(_FACTS, facts), proof


class _Library:
    """The chosen copies, as one rank reads them.

    Args:
        folder: of this pod.
        held: the copies, by rank of the world that made them.
        node_ranks: ranks of each pod.
    """

    def __init__(self, folder: CopyFolder, held: list[HeldCopy], node_ranks: int) -> None:
        self._folder, self._held, self._nodes = folder, held, node_ranks
        self._lengths = [sum(length for _, _, length in copy.pieces) for copy in held]
        self.stored = StoredPieces(pack(copy.pieces) for copy in held)

    def is_here(self, file: int) -> bool:
        """Whether a copy lies in this pod's memory."""
        return self._held[file].holder // self._nodes == self._folder.member.rank // self._nodes

    def requests(self, copies: Sequence[Copy]) -> list[list[Copy]]:
        """What this rank has to ask each rank for."""
        asked: list[list[Copy]] = [[] for _ in range(self._folder.member.world_size)]
        for copy in copies:
            if not self.is_here(copy.file):
                asked[self._held[copy.file].holder].append(copy)
        return asked

    def elements(self, quantity: Quantity, file: int, source: int, length: int) -> Tensor:
        """Some of a copy in this pod, float32."""
        copy = self._held[file]
        whole = self._folder.vector(copy.name, copy.bytes, copy.vectors[quantity], self._lengths[file])
        return whole[source : source + length]

    def answer(self, quantity: Quantity, rows: Tensor) -> Tensor:
        """What another rank asks for: rows of file, first element and length."""
        found = [self.elements(quantity, *row) for row in rows.view(-1, 3).tolist()]
        return torch.cat([torch.empty(0, dtype=torch.float32), *found])


def _fill(library: _Library, state: ShardedState, peers: SwappingPeers) -> None:
    """Every rank asks the holders for what it is to hold, part by part; what lies in its own pod it reads there."""
    parts = list(in_parts(state.held, PART_ELEMENTS))
    for number in range(int(peers.table([float(len(parts))]).max())):
        start, pieces = parts[number] if number < len(parts) else (0, list[Piece]())
        copies = library.stored.copies(pieces)
        asked = library.requests(copies)
        rows = [[(c.file, c.source, c.length) for c in wanted] for wanted in asked]
        requests = peers.swap([torch.tensor(found, dtype=torch.int64).reshape(-1) for found in rows])
        for quantity in state.quantities:
            values = torch.empty(packed_length(pieces), dtype=torch.float32)
            for copy in copies:
                if library.is_here(copy.file):
                    found = library.elements(quantity, copy.file, copy.source, copy.length)
                    values[copy.target : copy.target + copy.length] = found
            answers = peers.swap([library.answer(quantity, request) for request in requests])
            for wanted, answer in zip(asked, answers, strict=True):
                position = 0
                for copy in wanted:
                    values[copy.target : copy.target + copy.length] = answer[position : position + copy.length]
                    position += copy.length
            if pieces:
                state.write(quantity, values, start)
