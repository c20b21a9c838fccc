"""What pods use, from two looks at their processes."""

from __future__ import annotations

import pytest

from videotrain.kubelet.usage import Usage, UsageSampler


def test_cores_are_the_time_that_was_used_between_two_looks() -> None:
    sampler = UsageSampler(list)
    sampler.take(10.0, {"a": {1: (5.0, 100), 2: (1.0, 50)}})
    assert sampler.usage == {}, "once is not enough"
    sampler.take(14.0, {"a": {1: (7.0, 120), 3: (1.0, 30)}, "b": {9: (3.0, 1)}})
    # Process 1 used 2 s, process 3 began and used 1 s; of process 2, which ended, nothing more is known.
    assert sampler.usage == {"a": Usage(pytest.approx(0.75), 150)}
    sampler.take(15.0, {"b": {9: (3.5, 2)}})
    assert sampler.usage == {"b": Usage(pytest.approx(0.5), 2)}
