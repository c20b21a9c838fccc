"""What a run will cost before it starts: tokens, FLOPs, GPU-days and money per stage.

Model: every row of a bucket table gets an equal share of the steps, at the size of its longest square clip. The time of
a step is modelled from its work and from stated rates (`step_time`), in a low, a mid and a high band of rates, unless
its time is given, or a model FLOPs utilisation is.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from statistics import fmean
from typing import Final, Literal

from pydantic import Field

from videotrain_api.config import presets
from videotrain_api.config.text_classes import planned_text
from videotrain_api.cost import autoencoder_flops, flops, step_time
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.cost.overheads import Interruptions, Overheads, overheads
from videotrain_api.cost.peer_copies import AVERAGE_BYTES, STATE_BYTES
from videotrain_api.cost.preparation import Preparation, preparation
from videotrain_api.cost.published import PublishedStage, published_stage
from videotrain_api.cost.rates import ASSUMED_UTILISATION, BANDS, BandName, Rates
from videotrain_api.cost.text_encoding import text_flops
from videotrain_api.cost.work import StageWork, modelled_seconds, stage_work
from videotrain_api.money import cost_micros, format_micros, parse_micros
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import Bucket, Stage, TrainTask, node_counts, ulysses_degree
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_of
from videotrain_api.schema import ApiModel

MID: Final[BandName] = "mid"


class Band(ApiModel):
    """What a stage takes under one set of rates."""

    seconds_per_step: float
    mfu: float
    gpu_days: float
    cost: str


class StageForecast(ApiModel):
    """Expected cost of one stage. Work is None where it depends on data that nobody has counted yet."""

    name: str
    task: str
    nodes: int
    gpus: int
    """GPUs held: the most nodes that the stage may use; 0 on nodes without GPUs."""
    price: str
    """Of an hour of a GPU, or of a node without GPUs; decimal string in the run's currency."""
    work: StageWork | None = None
    """None for curate and encode, whose work grows with the hours of video."""
    seconds_per_step: float | None = None
    """At the mid rates, if nothing is given."""
    source: Literal["given", "modelled"] | None = None
    """Where seconds_per_step comes from."""
    mfu: float | None = None
    """Model FLOPs utilisation: the stated or modelled one, or what the given time means."""
    gpu_days: float | None = None
    node_days: float | None = None
    """Of nodes without GPUs."""
    cost_micros: int | None = None
    cost: str | None = None
    """Decimal string in the run's currency, without the overheads."""
    cost_on_run_pool: str | None = None
    """What a curate or encode stage with a pool of its own would cost in spec.pool."""
    bands: dict[BandName, Band] = Field(default_factory=dict)
    """The same at low, mid and high rates, where time is modelled."""
    assumes: list[str] = Field(default_factory=list)
    """What of the stage the modelled time of its steps depends on."""
    overheads: Overheads | None = None
    """None where the work is not counted in steps."""
    published: PublishedStage | None = None
    """The stage of the report with the same steps, GPUs and largest resolution."""


class CostForecast(ApiModel):
    """Expected cost of a run."""

    run: str
    currency: str
    price_per_gpu_hour: str
    """Of spec.pool."""
    mfu: float | None
    """Stated model FLOPs utilisation; None if it is modelled."""
    peak_flops: float
    """Of one GPU, FLOP/s."""
    stages: list[StageForecast]
    gpu_days: float
    """Sum over the stages whose work is known."""
    cost_micros: int
    cost: str
    """Of the steps, without the overheads."""
    cost_by_band: dict[BandName, str]
    """The same at low, mid and high rates; what is given or stated is in each of them as it is."""
    overhead_cost: str
    """Of starts, checkpoints and failures."""
    total_cost: str
    """Of steps and overheads."""
    complete: bool
    """False if the work of some stage is not known; the sum leaves it out."""
    preparation: Preparation | None = None
    """What making the data of all train stages takes, whether the run has such stages or not; None without hours."""


def forecast(
    run: VideoTrainingRun,
    *,
    mfu: float | None = None,
    seconds_per_step: Mapping[str, float] | None = None,
    peak_flops: float = PEAK_FLOPS,
    interruptions: Interruptions | None = None,
    hours_of_video: float | None = None,
    rates: Mapping[BandName, Rates] = BANDS,
) -> CostForecast:
    """Expected cost of every stage at its greatest number of nodes.

    Args:
        run: a valid manifest.
        mfu: model FLOPs utilisation, above 0 and at most 1, for stages whose step time is not given; modelled if None.
        seconds_per_step: known step times by stage name, seconds.
        peak_flops: dense bf16 peak of one GPU, FLOP/s.
        interruptions: how often training breaks off.
        hours_of_video: raw videos, by which the cost of curate and encode stages is modelled.
        rates: what GPUs are taken to deliver.

    Raises:
        ValueError: a number is out of range, or a step time names no stage of the run.
        ManifestError: a preset is unknown or incomplete.
    """
    given = seconds_per_step or {}
    _check_arguments(run, mfu, given, hours_of_video)
    planner = _Planner(run, mfu, given, peak_flops, interruptions or Interruptions(), hours_of_video, rates)
    stages = [planner.stage(index) for index in range(len(run.spec.stages))]
    total = sum(stage.cost_micros or 0 for stage in stages)
    price = run.spec.pool.price
    beside = sum(
        gpu_cost_micros(3600 * stage.overheads.gpu_hours, 1, stage.price) for stage in stages if stage.overheads
    )
    return CostForecast(
        run=run.metadata.name,
        currency=run.spec.pool.currency,
        price_per_gpu_hour=price,
        mfu=mfu,
        peak_flops=peak_flops,
        stages=stages,
        gpu_days=sum(stage.gpu_days or 0.0 for stage in stages),
        cost_micros=total,
        cost=format_micros(total),
        cost_by_band={name: format_micros(sum(_micros(stage, name) for stage in stages)) for name in rates},
        overhead_cost=format_micros(beside),
        total_cost=format_micros(total + beside),
        complete=all(stage.cost_micros is not None for stage in stages),
        preparation=_prepared(run, hours_of_video),
    )


def _prepared(run: VideoTrainingRun, hours_of_video: float | None) -> Preparation | None:
    if hours_of_video is None or not any(stage.train for stage in run.spec.stages):
        return None
    return preparation(hours_of_video, run.spec.stages, run.spec.autoencoder, run.spec.text_encoder)


def features(
    task: TrainTask, bucket: Bucket, shape: flops.MmditShape, text: TextEncoderSpec | None = None
) -> step_time.Features:
    """What of a train stage decides how fast the steps of a row are.

    Args:
        task: of the stage.
        bucket: the row.
        shape: of the transformer.
        text: encoder of captions, where a stage encodes them beside its steps; they are encoded already if None.
    """
    layout = task.parallel
    double, single = flops.recomputed_blocks(shape, layout)
    return step_time.Features(
        recompute=layout.recompute_of(bucket),
        double_blocks=double,
        single_blocks=single,
        compiled=task.compile != "off",
        attention=task.attention,
        eight_bit=task.fp8,
        sharded_gradients=layout.engine == "fsdp2" or layout.deepspeed_stage >= 2,
        gathers_under_forward=layout.engine == "fsdp2" or layout.deepspeed_stage == 3,
        gathers_in_each_pass=layout.engine == "deepspeed" and layout.deepspeed_stage == 3,
        offloaded=layout.offload == "optimizer",
        adapter=None if task.lora is None else flops.adapter_parameters(shape, task.lora),
        text_flops=text_flops(text, planned_text(not text.trim_padding, text.max_tokens))
        if text and task.text == "online"
        else 0.0,
    )


def row_time(
    run: VideoTrainingRun, task: TrainTask, bucket: Bucket, gpus: int, rates: Rates, gpus_per_node: int
) -> step_time.StepTime:
    """Time of a step of one row of a train stage on so many GPUs."""
    spec, layout = run.spec, task.parallel
    model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
    tokens, degree = flops.bucket_tokens(model, autoencoder, bucket), layout.degree_of(bucket)
    ring = degree // ulysses_degree(degree, gpus_per_node, model.num_heads or 1)
    text = planned_text(task.attend_padding, spec.text_encoder.max_tokens)
    size = step_time.RowSize(tokens, text, bucket.batch_size, degree, ring)
    rounds = -(-layout.micro_batches_of(bucket) // max(1, gpus // degree))
    shape = flops.run_shape(run)
    return step_time.step_time(shape, size, rounds, gpus, features(task, bucket, shape, spec.text_encoder), rates)


def gpu_cost_micros(seconds: float, gpus: int, price: str) -> int:
    """What so many GPUs cost for so long, in micros."""
    return cost_micros(round(Fraction(seconds) * 1_000_000) * gpus, parse_micros(price))


def node_cost_micros(hours: float, pool: Pool) -> int:
    """What nodes of a pool cost for so many hours of one, in micros."""
    return gpu_cost_micros(hours * 3600, pool.gpus_per_node or 1, pool.price)


def _check_arguments(
    run: VideoTrainingRun, mfu: float | None, given: Mapping[str, float], hours_of_video: float | None
) -> None:
    if mfu is not None and not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu}; allowed: above 0 and at most 1 (0.45 for 45 %)")
    if hours_of_video is not None and not hours_of_video > 0:
        raise ValueError(f"hours of video are {hours_of_video}; allowed: above 0")
    names = [stage.name for stage in run.spec.stages]
    for name, seconds in given.items():
        if name not in names:
            raise ValueError(f"seconds per step of {name!r}: no such stage; allowed: {', '.join(names)}")
        if seconds <= 0:
            raise ValueError(f"seconds per step of {name!r} is {seconds}; allowed: above 0")


def _micros(stage: StageForecast, band: BandName) -> int:
    return parse_micros(stage.bands[band].cost) if band in stage.bands else stage.cost_micros or 0


class _Planner:
    """Forecasts of the stages of one run; see `forecast` for what it is given."""

    def __init__(
        self,
        run: VideoTrainingRun,
        mfu: float | None,
        given: Mapping[str, float],
        peak_flops: float,
        interruptions: Interruptions,
        hours_of_video: float | None,
        rates: Mapping[BandName, Rates],
    ) -> None:
        self._run, self._mfu, self._given, self._peak = run, mfu, given, peak_flops
        self._interruptions, self._hours, self._rates = interruptions, hours_of_video, rates

    def stage(self, index: int) -> StageForecast:
        """Forecast of the stage at `index`."""
        run, stage = self._run, self._run.spec.stages[index]
        nodes = node_counts(node_bounds(run, stage))[-1]
        pool = pool_of(run, stage)
        gpus = nodes * pool.gpus_per_node
        base = StageForecast(name=stage.name, task=stage.task, nodes=nodes, gpus=gpus, price=pool.price)
        work = stage_work(run, stage)
        if work is None:
            return self._preparation(base, index)
        given = self._given.get(stage.name)
        times = {} if given or self._mfu else self._times(stage, work, gpus)
        seconds = given or (modelled_seconds(work, gpus, self._mfu, self._peak) if self._mfu else times[MID])
        mid = self._band(work, gpus, seconds, pool.price)
        task = stage.train or stage.autoencoder
        return base.model_copy(
            update={
                "work": work,
                "seconds_per_step": seconds,
                "source": "given" if given else "modelled",
                "mfu": mid.mfu,
                "gpu_days": mid.gpu_days,
                "cost_micros": parse_micros(mid.cost),
                "cost": mid.cost,
                "assumes": self._assumes(stage) if times else [],
                "bands": {name: self._band(work, gpus, each, pool.price) for name, each in times.items()},
                "overheads": self._overheads(stage, gpus, work.steps, seconds) if task else None,
                "published": published_stage(work.steps, gpus, stage.train.buckets) if stage.train else None,
            }
        )

    def _band(self, work: StageWork, gpus: int, seconds: float, price: str) -> Band:
        return Band(
            seconds_per_step=seconds,
            mfu=work.flops_per_step / (seconds * gpus * self._peak),
            gpu_days=seconds * work.steps * gpus / 86_400,
            cost=format_micros(gpu_cost_micros(seconds * work.steps, gpus, price)),
        )

    def _times(self, stage: Stage, work: StageWork, gpus: int) -> dict[BandName, float]:
        """Seconds per step by band."""
        if stage.train is None:
            shares = ASSUMED_UTILISATION.items()
            return {name: modelled_seconds(work, gpus, share, self._peak) for name, share in shares}
        task, each = stage.train, pool_of(self._run, stage).gpus_per_node
        return {
            name: fmean(row_time(self._run, task, bucket, gpus, rates, each).total for bucket in task.buckets)
            for name, rates in self._rates.items()
        }

    def _assumes(self, stage: Stage) -> list[str]:
        if stage.train is None:
            return ["assumed utilisation"]
        task, shape = stage.train, flops.run_shape(self._run)
        found = [features(task, bucket, shape) for bucket in task.buckets]
        kinds = dict.fromkeys(row.recompute for row in found)
        first = found[0]
        return [
            "compiled" if first.compiled else "eager",
            f"{'cudnn' if first.attention == 'auto' else first.attention} attention",
            f"recompute {', '.join(kinds)}",
            f"{task.parallel.engine}, reductions {'under' if first.sharded_gradients else 'after'} backward",
            *(["weights gathered in each pass"] if first.gathers_in_each_pass else []),
            *(["optimizer on the host"] if first.offloaded else []),
            *(["FP8"] if first.eight_bit else []),
            *(["adapter"] if first.adapter is not None else []),
        ]

    def _overheads(self, stage: Stage, gpus: int, steps: int, seconds: float) -> Overheads:
        spec = self._run.spec
        autoencoder = presets.complete_autoencoder(spec.autoencoder)
        if stage.train:
            shape, lora = flops.run_shape(self._run), stage.train.lora
            size = flops.parameters(shape) if lora is None else flops.adapter_parameters(shape, lora)
            average = stage.train.ema_decay is not None
        else:
            size, average = autoencoder_flops.autoencoder_parameters(autoencoder), True
        return overheads(
            spec.checkpoint,
            self._interruptions,
            gpus=gpus,
            steps=steps,
            seconds_per_step=seconds,
            state_bytes=size * (STATE_BYTES + (AVERAGE_BYTES if average else 0)),
        )

    def _preparation(self, base: StageForecast, index: int) -> StageForecast:
        """A curate or encode stage: known once the hours of video are."""
        if self._hours is None:
            return base
        spec = self._run.spec
        found = preparation(self._hours, spec.stages, spec.autoencoder, spec.text_encoder, index)
        pool, usual = pool_of(self._run, spec.stages[index]), spec.pool
        hours = found.node_hours(base.task, pool)
        if hours is None:
            return base
        there = None if pool is usual else found.node_hours(base.task, usual)
        micros = node_cost_micros(hours, pool)
        return base.model_copy(
            update={
                "gpu_days": hours * pool.gpus_per_node / 24,
                "node_days": None if pool.gpus_per_node else hours / 24,
                "cost_micros": micros,
                "cost": format_micros(micros),
                "cost_on_run_pool": None if there is None else format_micros(node_cost_micros(there, usual)),
                "source": "modelled",
            }
        )
