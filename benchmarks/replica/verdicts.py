"""What the measured ceilings and sums mean for what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_ATTENTION = 450.0
"""TFLOP/s of cuDNN's backward pass at the longest row."""
LEAST_PRODUCTS = 620.0
"""TFLOP/s, mean over layers and passes."""
LARGEST_DIFFERENCE = 0.03
"""Of the sum of blocks from the whole model."""


def verdicts(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each rule with what was measured; a rule whose part is missing does not hold."""
    measured_attention = [one for one in facts["attention"] if "error" not in one]
    rates = [one["backward_tflops"] for one in measured_attention if one["backend"] == "CUDNN_ATTENTION"]
    products = [one["tflops"] for one in facts["products"]]
    found = [
        _verdict(
            f"cuDNN's backward attention at the longest row reaches {LEAST_ATTENTION:.0f} TFLOP/s",
            rates[-1] if rates else None,
            lambda rate: rate >= LEAST_ATTENTION,
            "Below it the 768px rows miss their gain: try train.attention flash3 or flash4 before anything else.",
        ),
        _verdict(
            f"matrix products reach {LEAST_PRODUCTS:.0f} TFLOP/s in the mean",
            sum(products) / len(products),
            lambda rate: rate >= LEAST_PRODUCTS,
            "Below it train.fp8 comes before other work on the 256px rows.",
        ),
    ]
    sums = {one["row"]: one["micro_batch_s"] for one in facts["rows"] if one["way"] == "compiled selective"}
    for whole in facts.get("whole", []):
        row, measured = whole["row"], whole.get("micro_batch")
        difference = sums[row] / (measured["ms"] / 1e3) - 1 if measured and row in sums else None
        found.append(
            _verdict(
                f"the sum of blocks is within {LARGEST_DIFFERENCE:.0%} of the whole model, {row}",
                difference,
                lambda difference: abs(difference) <= LARGEST_DIFFERENCE,
                "Beyond it trust the whole model, and no row that was put together of blocks.",
            )
        )
    return found


def _verdict(rule: str, measured: float | None, holds: Any, then: str) -> dict[str, Any]:
    value = None if measured is None else round(measured, 4)
    return {"rule": rule, "measured": value, "holds": value is not None and bool(holds(value)), "then": then}
