"""VBench's scores of the leaderboard."""

import pytest

from videotrain_trainer.evaluation.vbench import QUALITY, SEMANTIC, SUITE, totals

# HunyuanVideo on VBench's leaderboard, percent, with its quality, semantic and total score.
PUBLISHED = (
    97.37,
    97.76,
    99.44,
    98.99,
    70.83,
    60.36,
    67.56,
    86.10,
    68.55,
    94.40,
    91.60,
    68.68,
    53.88,
    19.80,
    23.89,
    26.44,
)
TOLD = {"quality": 85.09, "semantic": 75.82, "total": 83.24}


def test_published_scores_give_the_published_totals():
    scores = {name: percent / 100 for name, percent in zip(SUITE, PUBLISHED, strict=True)}
    # They are told with two decimals, from dimensions with two decimals.
    assert {name: round(100 * score, 2) for name, score in totals(scores).items()} == pytest.approx(TOLD, abs=0.011)


def test_a_score_needs_all_of_its_dimensions():
    assert totals(dict.fromkeys(QUALITY, 0.9)).keys() == {"quality"}
    assert totals(dict.fromkeys(SEMANTIC, 0.2)).keys() == {"semantic"}
    assert totals(dict.fromkeys(SUITE[1:], 0.2)).keys() == {"semantic"}


def test_dynamic_degree_counts_half():
    even = {name: most for name, (_, most) in QUALITY.items()}
    assert totals(even)["quality"] == pytest.approx(1)
    assert totals(even | {"dynamic_degree": 0.0})["quality"] == pytest.approx(6 / 6.5)
    assert totals(even | {"imaging_quality": 0.0})["quality"] == pytest.approx(5.5 / 6.5)
