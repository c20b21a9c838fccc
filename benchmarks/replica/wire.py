"""A step of 8 GPUs from one rank's measured micro-batch. What is not measured is modelled, and named so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replica.blocks import Way
from replica.rows import Row, Sizes
from videotrain_api.cost.flops import train_flops
from videotrain_api.cost.forecast import features
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.cost.rates import MID
from videotrain_api.cost.step_time import RowSize, step_time
from videotrain_api.generate.speed import GPUS


def forecast(sizes: Sizes, row: Row, seconds: float, way: Way) -> dict[str, Any]:
    """The recipe's engine and exchange by the cost model, around a measured micro-batch.

    Args:
        sizes: of the model.
        row: whose micro-batch was measured.
        seconds: forward and backward pass of one rank.
        way: in which it was measured.
    """
    recipe = row.recipe
    about = replace(features(recipe.task, recipe.bucket, sizes.shape), recompute=way.recompute, compiled=way.compiled)
    size = RowSize(row.image_tokens, row.text_tokens, row.samples, row.degree)
    model = step_time(sizes.shape, size, row.micro_batches, GPUS, about, MID)
    step = row.micro_batches * (seconds + model.micro_batch.exchange) + model.tail + model.idle
    rate = row.micro_batches * row.samples * GPUS / row.degree / step
    return {
        "modelled_micro_batch_s": model.micro_batch.total - model.micro_batch.exchange,
        "modelled_exchange_s": model.micro_batch.exchange,
        "modelled_tail_and_idle_s": model.tail + model.idle,
        "modelled_step_s": step,
        "modelled_videos_per_s": rate,
        "modelled_gain": rate / recipe.published.samples_per_second,
        "modelled_mfu": train_flops(sizes.shape, row.image_tokens, row.text_tokens) * rate / GPUS / PEAK_FLOPS,
    }
