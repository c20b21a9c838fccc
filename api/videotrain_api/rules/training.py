"""Bucket tables, learning rates, conditioning and curation bounds."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from videotrain_api.capabilities import FP8_MULTIPLE
from videotrain_api.config import aspect
from videotrain_api.config.resolve import stage_paths
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.evaluation import Reconstruction
from videotrain_api.resource.references import frames_refusal, refusal
from videotrain_api.resource.sampling import NO_NEGATIVE
from videotrain_api.resource.stages import (
    AutoencoderTask,
    Bucket,
    ConditioningMix,
    CurateTask,
    Optimizer,
    Prompt,
    SampleTask,
    ScoreBounds,
    TrainingSamples,
    TrainTask,
)
from videotrain_api.rules.adapters import check_adapter
from videotrain_api.rules.autoencoders import check_autoencoder_losses
from videotrain_api.rules.facts import Facts
from videotrain_api.rules.pieces import check_pieces
from videotrain_api.schema import Problem


def check_training(facts: Facts) -> Iterator[Problem]:
    """What the tasks of all stages say about data and optimisation."""
    for index, stage in enumerate(facts.run.spec.stages):
        path = f"spec.stages[{index}].{stage.task}"
        if stage.train:
            yield from _train(path, stage.train, facts)
            yield from check_adapter(path, index, stage.train, facts)
        if stage.autoencoder:
            yield from _autoencoder(path, stage.autoencoder, facts)
        if stage.curate:
            yield from _curate(path, stage.curate)
        if stage.sample:
            yield from _drawn(path, stage.sample, facts)
        if stage.train and stage.train.samples:
            yield from _drawn(f"{path}.samples", stage.train.samples, facts)
        if stage.evaluate and stage.evaluate.reconstruction:
            yield from _reconstruction(f"{path}.reconstruction", stage.evaluate.reconstruction, facts)
    yield from _shared_captions(facts)


def _drawn(path: str, sample: SampleTask | TrainingSamples, facts: Facts) -> Iterator[Problem]:
    yield from _resolution(f"{path}.resolution", sample.resolution, facts.pixels_per_token)
    yield from _aspects(f"{path}.aspectRatio", [sample.aspect_ratio])
    yield from _decoded(f"{path}.frames", sample.frames, facts.autoencoder)
    kinds = {prompt.condition for prompt in sample.prompts} - {"t2v"}
    yield from _needs_condition_input(f"{path}.prompts", sorted(kinds), facts)
    for number, prompt in enumerate(sample.prompts):
        yield from _prompt(f"{path}.prompts[{number}]", prompt, sample.frames, facts)


def _reconstruction(path: str, task: Reconstruction, facts: Facts) -> Iterator[Problem]:
    yield from _resolution(f"{path}.resolution", task.resolution, facts.pixels_per_token)
    yield from _aspects(f"{path}.aspectRatio", [task.aspect_ratio])
    yield from _decoded(f"{path}.frames", task.frames, facts.autoencoder)


def _prompt(path: str, prompt: Prompt, frames: int, facts: Facts) -> Iterator[Problem]:
    if prompt.negative and facts.model is not None and facts.model.guidance_embed:
        yield Problem(f"{path}.negative", prompt.negative, NO_NEGATIVE)
    if facts.autoencoder is not None:
        # That the model has the input is another rule's matter.
        refused = refusal(prompt.condition, frames, facts.autoencoder.time, cond_embed=True)
        if refused:
            yield Problem(f"{path}.condition", prompt.condition, refused)


def _decoded(path: str, frames: int, autoencoder: AutoencoderSpec | None) -> Iterator[Problem]:
    """Clips that come out of the decoder."""
    yield from _frames(path, frames, autoencoder)
    if autoencoder is not None and autoencoder.time.fits(frames):
        refused = frames_refusal(frames, autoencoder.time)
        if refused:
            yield Problem(path, frames, refused)


def _train(path: str, task: TrainTask, facts: Facts) -> Iterator[Problem]:
    yield from _optimizer(f"{path}.optimizer", task.optimizer, task.steps)
    for number, bucket in enumerate(task.buckets):
        yield from _bucket(f"{path}.buckets[{number}]", bucket, facts, facts.pixels_per_token)
    yield from _overlaps(f"{path}.buckets", task.buckets)
    if facts.model is not None and facts.model.guidance_embed:
        allowed = "a model with a distilled guidance input can only be sampled from; train with false, which drops it"
        yield Problem("spec.model.guidanceEmbed", True, f"{path}: {allowed}")
    yield from _conditioning(f"{path}.conditioning", task.conditioning, facts)
    if task.fp8 and facts.model is not None:
        width = facts.model.hidden_size or 0
        widths = [width, int(width * (facts.model.mlp_ratio or 0))]
        if any(size % FP8_MULTIPLE for size in widths):
            allowed = f"needs layers whose widths are multiples of {FP8_MULTIPLE}, spec.model has {widths}; or false"
            yield Problem(f"{path}.fp8", task.fp8, allowed)
    names = [subset.name for subset in facts.run.spec.dataset.subsets]
    if task.subset is not None and task.subset not in names:
        allowed = f"must name one of spec.dataset.subsets; allowed: {', '.join(names) or 'none, there are none'}"
        yield Problem(f"{path}.subset", task.subset, allowed)
    yield from check_bounds(f"{path}.select", task.select)


def _autoencoder(path: str, task: AutoencoderTask, facts: Facts) -> Iterator[Problem]:
    yield from _optimizer(f"{path}.optimizer", task.optimizer, task.steps)
    grid = facts.autoencoder.spatial_compression if facts.autoencoder else None
    yield from _bucket(f"{path}.bucket", task.bucket, facts, grid)
    if facts.autoencoder is not None and facts.autoencoder.time.fits(task.bucket.frames):
        yield from _decoded(f"{path}.bucket.frames", task.bucket.frames, facts.autoencoder)
    if task.bucket.min_frames not in (None, task.bucket.frames):
        allowed = "autoencoder clips are cropped to one length: leave it out"
        yield Problem(f"{path}.bucket.minFrames", task.bucket.min_frames, allowed)
    if task.bucket.keep_probability != 1:
        allowed = "there is one size, so nothing can fall through to another: leave it out"
        yield Problem(f"{path}.bucket.keepProbability", task.bucket.keep_probability, allowed)
    yield from check_autoencoder_losses(path, task, facts.autoencoder)


def _bucket(path: str, bucket: Bucket, facts: Facts, grid: int | None) -> Iterator[Problem]:
    yield from _resolution(f"{path}.resolution", bucket.resolution, grid)
    yield from _frames(f"{path}.frames", bucket.frames, facts.autoencoder)
    shortest = bucket.min_frames
    if shortest is not None:
        yield from _frames(f"{path}.minFrames", shortest, facts.autoencoder)
        if shortest > bucket.frames:
            yield Problem(f"{path}.minFrames", shortest, f"must be at most frames ({bucket.frames})")
        if shortest == 1 and bucket.frames > 1:
            yield Problem(f"{path}.minFrames", 1, "pictures need a row of their own with frames: 1")
    yield from _aspects(f"{path}.aspectRatios", bucket.aspect_ratios or [])


def _resolution(path: str, name: str, grid: int | None) -> Iterator[Problem]:
    usable = [n for n in aspect.RESOLUTION_NAMES if grid is None or aspect.side_of(n) % grid == 0]
    if name in usable:
        return
    problem = "unknown resolution" if name not in aspect.RESOLUTION_NAMES else f"no multiple of {grid} pixels per token"
    yield Problem(path, name, f"{problem}; allowed with this model: {', '.join(usable)}")


def _frames(path: str, frames: int, autoencoder: AutoencoderSpec | None) -> Iterator[Problem]:
    if autoencoder is None or autoencoder.time.fits(frames):
        return
    time, (below, above) = autoencoder.time, autoencoder.time.nearest(frames)
    kind = f"kind {autoencoder.kind} is causal" if time.causal else f"kind {autoencoder.kind}"
    yield Problem(path, frames, f"{kind}; allowed: {time.allowed}; the nearest are {below} and {above}")


def _aspects(path: str, names: Sequence[str]) -> Iterator[Problem]:
    for name in names:
        if name not in aspect.ASPECT_NAMES:
            near = difflib.get_close_matches(name, aspect.ASPECT_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            yield Problem(path, name, f"unknown aspect ratio; {hint}allowed: {', '.join(aspect.ASPECT_NAMES)}")
    if len(set(names)) != len(names):
        yield Problem(path, list(names), "each name may appear once")


def _overlaps(path: str, buckets: list[Bucket]) -> Iterator[Problem]:
    for number, bucket in enumerate(buckets):
        for other in range(number):
            if _same_size(bucket, buckets[other]):
                what = f"{bucket.resolution} with {bucket.min_frames or bucket.frames} to {bucket.frames} frames"
                yield Problem(f"{path}[{number}]", what, f"overlaps {path}[{other}]: a clip must fit one row only")


def _same_size(one: Bucket, other: Bucket) -> bool:
    lower, upper = max(_shortest(one), _shortest(other)), min(one.frames, other.frames)
    return one.resolution == other.resolution and lower <= upper


def _shortest(bucket: Bucket) -> int:
    return bucket.min_frames or bucket.frames


def _optimizer(path: str, optimizer: Optimizer, steps: int) -> Iterator[Problem]:
    if optimizer.warmup_steps > steps:
        yield Problem(f"{path}.warmupSteps", optimizer.warmup_steps, f"must be at most steps ({steps})")
    ends = [piece.until_step for piece in optimizer.learning_rate]
    yield from check_pieces(f"{path}.learningRate", ends, steps, "rate")


def _conditioning(path: str, mix: ConditioningMix, facts: Facts) -> Iterator[Problem]:
    weights = mix.to_wire()
    if not any(weights.values()):
        yield Problem(path, weights, "at least one weight must be above 0")
    kinds = [name for name, field in type(mix).model_fields.items() if name != "t2v" and getattr(mix, name) > 0]
    yield from _needs_condition_input(path, kinds, facts)


def _needs_condition_input(path: str, kinds: Sequence[str], facts: Facts) -> Iterator[Problem]:
    if kinds and facts.model is not None and not facts.model.cond_embed:
        allowed = "needs spec.model.condEmbed: true; the model has no image/video condition input"
        yield Problem(path, ", ".join(kinds), allowed)


def check_bounds(path: str, select: Sequence[ScoreBounds]) -> Iterator[Problem]:
    """Every selection has a bound, and none that excludes all."""
    for number, bounds in enumerate(select):
        if bounds.min is None and bounds.max is None:
            yield Problem(f"{path}[{number}]", bounds.to_wire(), "set min, max or both")
        elif bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            yield Problem(f"{path}[{number}].min", bounds.min, f"must be at most max ({bounds.max})")


def _curate(path: str, task: CurateTask) -> Iterator[Problem]:
    pairs = {
        "Seconds": (task.min_seconds, task.max_seconds),
        "Aspect": (task.min_aspect, task.max_aspect),
        "Motion": (task.min_motion, task.max_motion),
    }
    for name, (low, high) in pairs.items():
        if low > high:
            yield Problem(f"{path}.min{name}", low, f"must be at most max{name} ({high})")
    if task.min_aesthetic is not None and task.image_model is None:
        yield Problem(f"{path}.minAesthetic", task.min_aesthetic, "needs imageModel, which measures the score")


def _shared_captions(facts: Facts) -> Iterator[Problem]:
    """Captions are encoded once, so all stages that read one encoded set must agree on what is appended to them."""
    seen: dict[str, tuple[int, TrainTask]] = {}
    for index, stage in enumerate(facts.run.spec.stages):
        latents = stage_paths(facts.run, index).latents
        if stage.train is None or latents is None:
            continue
        first, task = seen.setdefault(latents, (index, stage.train))
        for name in ("motionScore", "fpsInPrompt"):
            value, other = (t.to_wire()[name] for t in (stage.train, task))
            if value != other:
                allowed = f"spec.stages[{first}] reads the same encoded captions; allowed: {str(other).lower()}"
                yield Problem(f"spec.stages[{index}].train.{name}", value, allowed)
