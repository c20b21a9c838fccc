"""Layers of autoencoders in training, traced by `benchmarks/trace_autoencoders.py write`; do not edit."""

from typing import Final, NamedTuple

Vector = tuple[float, ...]
"""Bytes per unit of each of FEATURES."""


class Trace(NamedTuple):
    """Memory of one layer in bfloat16, its input left out. A maximum is the largest of its vectors at any sizes."""

    kept: Vector
    """From its forward to its backward pass, its output with it."""
    forward: tuple[Vector, ...]
    """Most in its forward pass."""
    backward: tuple[Vector, ...]
    """Most in its backward pass. Gradients of weights go as soon as they are there: engines have their own room."""


# fmt: off
LAYERS: Final = {
    ("absolute", "none"): Trace(
    (4, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0),
    (
        (12, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0),
    ),
    (
        (16, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0),
    ),
),
    ("critic_in", "none"): Trace(
    (0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("critic_layer", "none"): Trace(
    (0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 8),
    (
        (0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 8),
    ),
    (
        (0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 8),
        (2, 4, 0, 0, 0, 0, 0, 54, 0, 0, 0),
    ),
),
    ("critic_out", "none"): Trace(
    (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (2, 2, 0, 0, 0, 2, 0, 54, 0, 0, 0),
    ),
),
    ("dc_attention", "full"): Trace(
    (2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (66.75, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (146.75, 0, 0, 4, 0, 0, 264, 0, 0, 0, 0),
    ),
),
    ("dc_attention", "none"): Trace(
    (128.75, 0, 0, 8, 0, 0, 264, 0, 0, 0, 0),
    (
        (134.75, 0, 0, 8, 0, 0, 264, 0, 0, 0, 0),
    ),
    (
        (146.75, 0, 0, 4, 0, 0, 264, 0, 0, 0, 0),
    ),
),
    ("dc_attention", "selective"): Trace(
    (56, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (78.75, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (146.75, 0, 0, 4, 0, 0, 264, 0, 0, 0, 0),
    ),
),
    ("dc_block", "full"): Trace(
    (2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("dc_block", "none"): Trace(
    (12, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0),
    (
        (18, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("dc_block", "selective"): Trace(
    (6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("dc_down", "none"): Trace(
    (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (6, 2, 0, 0, 0, 0, 0, 54, 0, 0, 2),
    ),
),
    ("dc_head", "none"): Trace(
    (8, 3.3333, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (12, 1.3333, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (24, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("dc_in", "none"): Trace(
    (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
),
    ("dc_project_in", "none"): Trace(
    (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (6, 2, 0, 0, 0, 0, 0, 54, 0, 0, 2),
    ),
),
    ("dc_project_out", "none"): Trace(
    (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (6, 2, 0, 0, 0, 0, 0, 54, 0, 0, 2),
    ),
),
    ("dc_up", "none"): Trace(
    (0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0),
    (
        (0, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0),
    ),
    (
        (2, 2, 4, 0, 0, 0, 0, 54, 0, 0, 2),
    ),
),
    ("perceptual", "none"): Trace(
    (816.885, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0),
    (
        (1148.22, 0, 0, 0, 0, 53.3314, 21.6116, 0, 0, 0, 0),
    ),
    (
        (995.552, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0),
    ),
),
}
"""By kind and policy of recomputation."""
# fmt: on
