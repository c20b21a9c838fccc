"""Sources of the dataset and their weights."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.resource.sources import Source, SourceWeights
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.rules.facts import Facts
from videotrain_api.rules.pieces import check_pieces
from videotrain_api.schema import Problem

_PATH = "spec.dataset.sources"


def check_sources(facts: Facts) -> Iterator[Problem]:
    """Names, forms and weights of all sources, and what stages make of the weights."""
    dataset, stages = facts.run.spec.dataset, facts.run.spec.stages
    yield from _beside(dataset)
    yield from _each_by_itself(dataset.sources)
    forms = sorted({source.form for source in dataset.sources})
    raw, encoded = [form for form in forms if form != "latents"], "latents" in forms
    if raw and encoded:
        yield Problem(_PATH, forms, "sources of a run are all raw, or all encoded: encode the raw ones in another run")
    curating, encoding = ([stage.name for stage in stages if stage.task == task] for task in ("curate", "encode"))
    if raw and not curating:
        yield Problem(_PATH, forms, "no stage reads raw videos: put a stage with task 'curate' first")
    if encoded and not raw and encoding:
        allowed = f"no stage reads it, since stage '{encoding[0]}' makes latents: remove one of the two"
        yield Problem(_PATH, forms, allowed)
    for index, stage in enumerate(stages):
        if stage.train and stage.train.source_weights:
            path = f"spec.stages[{index}].train.sourceWeights"
            ends = [piece.until_step for piece in stage.train.source_weights]
            yield from check_pieces(path, ends, stage.train.steps, "weights")
            yield from _weights(path, stage.train.source_weights, dataset)


def _beside(dataset: Dataset) -> Iterator[Problem]:
    for name, alone in (("videos", dataset.videos), ("latents", dataset.latents)):
        if dataset.sources and alone is not None:
            yield Problem(
                f"spec.dataset.{name}", alone, f"spec.dataset.sources are set: make it one of them, or leave {name} out"
            )


def _each_by_itself(sources: list[Source]) -> Iterator[Problem]:
    names: dict[str, int] = {}
    places: dict[str, str] = {}
    for number, source in enumerate(sources):
        first = names.setdefault(source.name, number)
        if first != number:
            yield Problem(
                f"{_PATH}[{number}].name", source.name, f"names must be unique; {_PATH}[{first}] has it already"
            )
        other = places.setdefault(source.uri.rstrip("/"), source.name)
        if other != source.name:
            allowed = f"source {other!r} lies there too; each sample is of one source"
            yield Problem(f"{_PATH}[{number}].uri", source.uri, allowed)
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        allowed = f"all sources have a weight, or none has; without: {', '.join(without)}"
        yield Problem(_PATH, f"{len(sources) - len(without)} of {len(sources)} weights", allowed)


def _weights(path: str, pieces: list[SourceWeights], dataset: Dataset) -> Iterator[Problem]:
    names = [source.name for source in dataset.sources]
    if len(names) < 2:
        yield Problem(
            path, f"{len(pieces)} pieces", "there is nothing to weigh: spec.dataset.sources has fewer than two"
        )
        return
    for number, piece in enumerate(pieces):
        where = f"{path}[{number}].weights"
        if set(piece.weights) != set(names):
            allowed = f"must name each of spec.dataset.sources once: {', '.join(names)}"
            yield Problem(where, ", ".join(sorted(piece.weights)), allowed)
        if not any(piece.weights.values()):
            yield Problem(where, piece.weights, "at least one must be above 0")
