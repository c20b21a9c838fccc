"""The rules that the API server itself can check, as CEL expressions of the CRD.

Each stands at the model whose fields it compares. They are a subset of `rules`: what CEL cannot say (presets, parallel
layouts of every node count, money) is left to `validation.parse_run`. Only standard CEL is used, no Kubernetes library.
Positions are compared by index over a literal list, since plain CEL has no index of a list element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from videotrain_api import capabilities
from videotrain_api.config import aspect
from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.crd.cel import CelRule, at_most, names
from videotrain_api.crd.transitions import TRANSITIONS
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.evaluation import EVALUATES_NOTHING, EvaluateTask
from videotrain_api.resource.pool import (
    ENV_ADVICE,
    ENV_NAME,
    RESERVED_ENV,
    RESERVED_ENV_PREFIXES,
    CacheVolume,
    Pool,
    RunPool,
)
from videotrain_api.resource.references import REFERENCES, Reference
from videotrain_api.resource.stages import (
    TASKS,
    AutoencoderTask,
    Bucket,
    ConditioningMix,
    CurateTask,
    NodeBounds,
    Optimizer,
    Prompt,
    SampleTask,
    ScoreBounds,
    Stage,
    TrainTask,
    WeightsFrom,
)
from videotrain_api.resource.training_budgets import BudgetRule
from videotrain_api.resource.trainrun import (
    Budget,
    CheckpointPolicy,
    VideoTrainingRunSpec,
)
from videotrain_api.schema import ApiModel, camel_case

MOST_STAGES: Final = 32
_INDICES: Final = "[" + ", ".join(map(str, range(MOST_STAGES))) + "]"


def _union(member: str) -> CelRule:
    rule = f"(self.task == '{member}') == has(self.{member})"
    return CelRule(rule, f"{member} must be set if task is {member}, and only then", f".{member}")


def _made_before(task: str, maker: str, given: tuple[str, ...], message: str) -> CelRule:
    """Every stage of `task` needs one of the fields `given` or an earlier stage with task `maker`."""
    before = f"{_INDICES}.exists(j, j < i && self.stages[j].task == '{maker}')"
    each = f"{_INDICES}.all(i, i >= size(self.stages) || self.stages[i].task != '{task}' || {before})"
    none = _no_stage(f"s.task == '{task}'")
    present = " || ".join(f"has(self.{field})" for field in given)
    return CelRule(f"{present} || {none} || {each}", message, ".stages")


def _no_stage(condition: str) -> str:
    """Said first, it spares most runs the loops, which the API server goes through at every write of a status."""
    return f"!self.stages.exists(s, {condition})"


_INPUTS: Final = (
    _made_before(
        "autoencoder",
        "curate",
        ("dataset.clips",),
        "a stage with task autoencoder needs clips: set dataset.clips or put a curate stage before it",
    ),
    _made_before(
        "encode",
        "curate",
        ("dataset.clips",),
        "a stage with task encode needs clips: set dataset.clips or put a curate stage before it",
    ),
    _made_before(
        "encode",
        "autoencoder",
        ("autoencoder.weights",),
        "a stage with task encode needs an autoencoder: set autoencoder.weights or put an autoencoder stage before it",
    ),
    _made_before(
        "train",
        "encode",
        ("dataset.latents", "dataset.sources"),
        "a stage with task train needs latents: set dataset.latents or sources, or put an encode stage before it",
    ),
    _made_before(
        "sample",
        "train",
        ("model.weights",),
        "a stage with task sample needs a transformer: set model.weights or put a train stage before it",
    ),
    _made_before(
        "sample",
        "autoencoder",
        ("autoencoder.weights",),
        "a stage with task sample needs an autoencoder: set autoencoder.weights or put an autoencoder stage before it",
    ),
    CelRule(
        "has(self.dataset.videos) || has(self.dataset.sources) || !self.stages.exists(s, s.task == 'curate')",
        "a stage with task curate needs dataset.videos or dataset.sources",
        ".dataset",
    ),
)


def _starts_from(task: str) -> CelRule:
    source = f"self.stages[i].{task}.initFrom"
    earlier = f"{_INDICES}.exists(j, j < i && self.stages[j].task == '{task}' && self.stages[j].name == {source}.stage)"
    unset = f"!has(self.stages[i].{task}) || !has({source}) || !has({source}.stage)"
    none = _no_stage(f"has(s.{task}) && has(s.{task}.initFrom) && has(s.{task}.initFrom.stage)")
    rule = f"{none} || {_INDICES}.all(i, i >= size(self.stages) || {unset} || {earlier})"
    return CelRule(rule, f"{task}.initFrom.stage must name an earlier stage with task {task}", ".stages")


_GPUS: Final = "(has(s.pool) ? s.pool.gpusPerNode : self.pool.gpusPerNode)"
_TRAIN: Final = "s.train.parallel"


def _fits_node(degree: str) -> str:
    return f"({_GPUS} % {degree} == 0 || {degree} % {_GPUS} == 0)"


def _own(row: str, field: str, layout: str) -> str:
    """A row's field, or what the layout says for all rows."""
    of_layout = {"microBatches": "microBatchesPerStep"}.get(field, field)
    return f"(has({row}.{field}) ? {row}.{field} : {layout}.{of_layout})"


def _enough_micro_batches(row: str, layout: str) -> str:
    groups = f"(has(s.nodes) ? s.nodes.max : self.nodes.max) * {_GPUS} / {_own(row, 'contextParallel', layout)}"
    return f"{groups} <= {_own(row, 'microBatches', layout)}"


def _costs(pool: str) -> str:
    prices = (
        f"has({pool}.{field}) && double({pool}.{field}) > 0.0" for field in ("pricePerGpuHour", "pricePerNodeHour")
    )
    return " || ".join(prices)


_ANY_NODES: Final = "has(s.nodes) && has(s.nodes.allowed) || !has(s.nodes) && has(self.nodes.allowed)"
_LAYOUTS: Final = (
    CelRule(
        f"self.stages.all(s, !has(s.train) || {_fits_node(f'{_TRAIN}.contextParallel')} && "
        f"s.train.buckets.all(b, !has(b.contextParallel) || {_fits_node('b.contextParallel')}))",
        "contextParallel must divide gpusPerNode of the pool or be a multiple of it",
        ".stages",
    ),
    CelRule(
        f"self.stages.all(s, {_ANY_NODES} || "
        f"(!has(s.train) || s.train.buckets.all(b, {_enough_micro_batches('b', _TRAIN)})) && "
        f"(!has(s.autoencoder) || {_enough_micro_batches('s.autoencoder.bucket', 's.autoencoder.parallel')}))",
        "microBatchesPerStep or a row's microBatches must be at least nodes.max * gpusPerNode / contextParallel: "
        "lower nodes.max",
        ".stages",
    ),
    CelRule(
        "self.stages.all(s, !has(s.autoencoder) || !has(s.autoencoder.bucket.contextParallel) || "
        "s.autoencoder.bucket.contextParallel == 1)",
        "autoencoder.bucket.contextParallel must be 1",
        ".stages",
    ),
)


def _exclusions(task: str, member: type[ApiModel]) -> tuple[CelRule, ...]:
    """What the trainer of this version cannot combine in a stage of the task."""
    rules = []
    for exclusion in capabilities.EXCLUSIONS:
        fields = [capabilities.SETTINGS[name][0] for name in exclusion.when]
        if task in exclusion.tasks and all(field in member.model_fields for field in fields):
            met = " && ".join(_met(name, values) for name, values in exclusion.when.items())
            blamed = capabilities.wire_path(exclusion.blamed)
            rules.append(CelRule(f"!({met})", f"{blamed}: {exclusion.allowed}", f".{blamed}"))
    return tuple(rules)


def _met(name: str, values: tuple[object, ...] | capabilities.AnyBut) -> str:
    path = capabilities.wire_path(name)
    if values in ((capabilities.SET,), capabilities.AnyBut((None,))):
        return f"has(self.{path})"
    listed = values.values if isinstance(values, capabilities.AnyBut) else values
    inside = f"self.{path} in {json.dumps(listed)}"
    owner = capabilities.SETTINGS[name][0]
    if owner in capabilities.MAY_BE_UNSET:
        inside = f"has(self.{owner}) && {inside}"
    if name in capabilities.MAY_BE_UNSET:
        inside = f"has(self.{path}) && {inside}"
    return f"!({inside})" if isinstance(values, capabilities.AnyBut) else inside


def _temporal_compression() -> str:
    """The autoencoder's temporal compression: written, or that of a preset, else the one of our own kinds."""
    usual = 4
    rule = str(usual)
    steps = {name: spec.temporal_compression for name, spec in AUTOENCODERS.items()}
    for step in sorted(set(steps.values()) - {usual}):
        presets = names(tuple(name for name in steps if steps[name] == step))
        rule = f"has(self.autoencoder.preset) && self.autoencoder.preset in {presets} ? {step} : {rule}"
    return f"has(self.autoencoder.compression) ? self.autoencoder.compression.time : {rule}"


_DISTILLED: Final = (
    "has(self.model.guidanceEmbed) ? self.model.guidanceEmbed : has(self.model.preset) && self.model.preset in "
    + names(tuple(name for name, model in TRANSFORMERS.items() if model.guidance_embed))
)
_STEPS_BELOW: Final = "(!has(b.minFrames) || b.minFrames % c == b.frames % c)"
# A list of one stands for a variable: plain CEL has none.
_FRAMES: Final = CelRule(
    f"[{_temporal_compression()}].all(c, self.stages.all(s, "
    f"(!has(s.train) || s.train.buckets.all(b, b.frames % c <= 1 && {_STEPS_BELOW})) && "
    "(!has(s.autoencoder) || s.autoencoder.bucket.frames % c <= 1) && "
    "(!has(s.sample) || s.sample.frames % c <= 1) && "
    "(!has(s.evaluate) || !has(s.evaluate.reconstruction) || s.evaluate.reconstruction.frames % c <= 1)))",
    "frames must be 1, ck (dc-ae) or 1 + ck (causal) with the temporal compression c of the autoencoder, and minFrames "
    "in steps of c below frames",
    ".stages",
)

_SPEC: Final = (
    _FRAMES,
    CelRule(
        "self.stages.all(s, self.stages.exists_one(t, t.name == s.name))",
        "names of stages must be unique",
        ".stages",
        "FieldValueDuplicate",
    ),
    *_INPUTS,
    _starts_from("train"),
    _starts_from("autoencoder"),
    *_LAYOUTS,
    CelRule(
        f"!({_DISTILLED}) || " + _no_stage("s.task == 'train'"),
        "a model with a distilled guidance input can only be sampled from: train with model.guidanceEmbed false",
        ".model",
    ),
    CelRule(
        f"!has(self.budget) || !has(self.budget.maxCost) || {_costs('self.pool')} || "
        f"self.stages.exists(s, has(s.pool) && ({_costs('s.pool')}))",
        "budget.maxCost can never be reached at a price of 0; use budget.maxGpuHours",
        ".budget",
    ),
    CelRule(
        f"self.stages.all(s, s.task in {names(capabilities.TASKS_WITHOUT_GPUS)} || {_GPUS} > 0)",
        f"a stage computes on GPUs, all but {', '.join(capabilities.TASKS_WITHOUT_GPUS)}: set gpusPerNode of its pool",
        ".stages",
    ),
)

_BUCKET: Final = (
    CelRule(
        f"self.resolution in {names(aspect.RESOLUTION_NAMES)}",
        f"unknown resolution; allowed: {', '.join(aspect.RESOLUTION_NAMES)}",
        ".resolution",
    ),
    at_most("minFrames", "frames"),
    CelRule(
        "!has(self.minFrames) || self.minFrames > 1 || self.frames == 1",
        "pictures need a row of their own with frames 1",
        ".minFrames",
    ),
    CelRule(
        f"!has(self.aspectRatios) || self.aspectRatios.all(a, a in {names(aspect.ASPECT_NAMES)})",
        f"unknown aspect ratio; allowed: {', '.join(aspect.ASPECT_NAMES)}",
        ".aspectRatios",
    ),
)

_SAMPLE: Final = (
    _BUCKET[0],
    CelRule(
        f"self.aspectRatio in {names(aspect.ASPECT_NAMES)}",
        f"unknown aspect ratio; allowed: {', '.join(aspect.ASPECT_NAMES)}",
        ".aspectRatio",
    ),
    CelRule("self.fromDataset > 0 || has(self.prompts) && size(self.prompts) > 0", "give prompts or set fromDataset"),
    CelRule("(self.candidates > 1) == has(self.scorer)", "several candidates need a scorer, one takes none", ".scorer"),
)


def _reference(reference: Reference) -> CelRule:
    field, takes = camel_case(reference.field), f"self.condition.startsWith('{reference.prefix}')"
    if reference.needed:
        return CelRule(f"{takes} == has(self.{field})", reference.allowed)
    return CelRule(f"!has(self.{field}) || {takes}", reference.allowed, f".{field}")


_RESERVED_PREFIX: Final = " || ".join(f"k.startsWith('{prefix}')" for prefix in RESERVED_ENV_PREFIXES)
_PIECES: Final = f"{_INDICES}.all(i, i == 0 || i >= size(self.learningRate) || "

_POOL: Final = (
    CelRule(
        f"!has(self.env) || self.env.all(k, k.matches('{ENV_NAME}'))",
        "names of variables are letters, digits, '-', '_' and '.', and do not start with a digit",
        ".env",
    ),
    CelRule(
        f"!has(self.env) || !self.env.exists(k, k in {names(RESERVED_ENV)} || {_RESERVED_PREFIX})",
        ENV_ADVICE,
        ".env",
        "FieldValueForbidden",
    ),
    CelRule(
        "(self.gpusPerNode > 0) == has(self.pricePerGpuHour)",
        "pricePerGpuHour must be set if the nodes have GPUs, and only then",
        ".pricePerGpuHour",
    ),
    CelRule(
        "(self.gpusPerNode == 0) == has(self.pricePerNodeHour)",
        "pricePerNodeHour must be set if gpusPerNode is 0, and only then",
        ".pricePerNodeHour",
    ),
)

_STATE: Final[Mapping[type[ApiModel], tuple[CelRule, ...]]] = {
    VideoTrainingRunSpec: _SPEC,
    Stage: (*(_union(member) for member in TASKS),),
    NodeBounds: (
        at_most("min", "max", ": lower min first, or set suspend: true to release every node"),
        CelRule(
            "!has(self.allowed) || self.allowed.all(n, n >= self.min && n <= self.max)",
            "every allowed count must lie from min to max: change allowed together with the bounds",
            ".allowed",
        ),
        CelRule(
            "!has(self.allowed) || self.allowed.all(n, self.allowed.exists_one(m, m == n))",
            "every allowed count may appear once",
            ".allowed",
            "FieldValueDuplicate",
        ),
    ),
    TrainTask: _exclusions("train", TrainTask),
    AutoencoderTask: _exclusions("autoencoder", AutoencoderTask),
    Bucket: _BUCKET,
    SampleTask: _SAMPLE,
    EvaluateTask: (
        CelRule(
            "has(self.reconstruction) || has(self.videos) || has(self.videosUri) || has(self.heldOut)",
            EVALUATES_NOTHING,
        ),
        CelRule("!has(self.videos) || !has(self.videosUri)", "set videos or videosUri, not both", ".videosUri"),
        CelRule(
            "!(has(self.vbench) || has(self.preference)) || has(self.videos) || has(self.videosUri)",
            "vbench and preference are of videos: set videos or videosUri, too",
        ),
    ),
    Prompt: tuple(_reference(reference) for reference in REFERENCES),
    ConditioningMix: (
        CelRule(
            "self.t2v + self.i2vHead + self.i2vTail + self.i2vLoop + self.v2vHead + self.v2vTail + self.v2vHeadEasy + "
            "self.v2vTailEasy > 0.0",
            "at least one weight must be above 0",
        ),
    ),
    Optimizer: (
        CelRule(
            f"size(self.learningRate) < 2 || {_PIECES}(has(self.learningRate[i - 1].untilStep) && "
            "(!has(self.learningRate[i].untilStep) || "
            "self.learningRate[i].untilStep > self.learningRate[i - 1].untilStep)))",
            "the pieces must be in order of untilStep, and only the last may leave it out",
            ".learningRate",
        ),
    ),
    ScoreBounds: (
        CelRule("has(self.min) || has(self.max)", "set min, max or both"),
        at_most("min", "max"),
    ),
    CurateTask: (
        at_most("minSeconds", "maxSeconds"),
        at_most("minAspect", "maxAspect"),
        at_most("minMotion", "maxMotion"),
    ),
    WeightsFrom: (CelRule("!has(self.stage) || !has(self.uri)", "set stage or uri, not both"),),
    TransformerSpec: (
        CelRule(
            "!has(self.ropeAxes) || self.ropeAxes.all(a, a >= 2 && a % 2 == 0)",
            "even numbers of 2 or more",
            ".ropeAxes",
        ),
        CelRule(
            "!has(self.hiddenSize) || !has(self.numHeads) || self.hiddenSize % self.numHeads == 0",
            "hiddenSize must be a multiple of numHeads",
            ".hiddenSize",
        ),
        CelRule(
            "!has(self.hiddenSize) || !has(self.numHeads) || !has(self.ropeAxes) || "
            "self.ropeAxes[0] + self.ropeAxes[1] + self.ropeAxes[2] == self.hiddenSize / self.numHeads",
            "ropeAxes must sum to hiddenSize / numHeads",
            ".ropeAxes",
        ),
    ),
    AutoencoderSpec: (
        CelRule(
            "!has(self.kind) || self.kind == 'diffusers' || !has(self.compression) && !has(self.causality)",
            "only kind diffusers takes compression and causality; the other kinds fix them",
            ".kind",
        ),
    ),
    TextEncoderSpec: (
        CelRule(
            "(self.kind == 't5-clip') == has(self.weights)", "weights are required by t5-clip and refused by bytes"
        ),
        CelRule("!self.trimPadding || self.kind == 't5-clip'", "only t5-clip encodes pad tokens", ".trimPadding"),
    ),
    Budget: (
        CelRule("has(self.maxCost) || has(self.maxGpuHours)", "set maxCost, maxGpuHours or both"),
        CelRule("!has(self.maxCost) || double(self.maxCost) > 0.0", "a budget of 0 buys no step", ".maxCost"),
    ),
    CheckpointPolicy: (
        CelRule(
            "!has(self.keepEverySteps) || self.keepEverySteps % self.everySteps == 0",
            "keepEverySteps must be a multiple of everySteps",
            ".keepEverySteps",
        ),
    ),
    RunPool: _POOL,
    Pool: _POOL,
    CacheVolume: (
        CelRule(
            "!has(self.claimName) || !has(self.sizeGibibytes) && !has(self.storageClassName)",
            "a claim has a size and a class of its own: set claimName, or the other two",
            ".claimName",
        ),
        CelRule(
            "!has(self.storageClassName) || has(self.sizeGibibytes)",
            "storageClassName needs sizeGibibytes",
            ".storageClassName",
        ),
    ),
}
_MODELS: Final = {**TRANSITIONS, **_STATE}
RULES: Final[Mapping[type[ApiModel], tuple[CelRule, ...]]] = {
    model: (*TRANSITIONS.get(model, ()), *_STATE.get(model, ())) for model in _MODELS
}
"""Rules by the model at which they stand."""
BUDGET_RULES: Final[Mapping[type[ApiModel], tuple[CelRule, ...]]] = {
    BudgetRule: (
        CelRule(
            "!has(self.belowPriority) || self.action != 'Notify'",
            "Notify tells of the whole budget: leave belowPriority out, or choose another action",
            ".belowPriority",
        ),
    ),
}
"""The same of TrainingBudgets."""
