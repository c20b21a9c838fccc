"""The checks of a run before it costs anything: what each asks, who can answer it, and what an answer looks like.

One table for all: `videotrain check` answers what the manifest alone tells, `videotrain-trainer check` and the first
worker of a run what needs its store and models, and `videotrain check --cluster` what the cluster knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, get_args

from pydantic import Field

from videotrain_api.schema import ApiModel
from videotrain_api.vocabulary import ExitCode

CheckName = Literal[
    "manifest",
    "memory",
    "version",
    "storage",
    "location",
    "weights",
    "data",
    "buckets",
    "packages",
    "admission",
    "secret",
    "queue",
    "nodes",
]
Verdict = Literal["ok", "wrong", "warning", "open"]
"""`wrong`: the run would fail. `warning`: it would run, perhaps not as meant. `open`: nobody could look."""


class Check(NamedTuple):
    """A question about a run."""

    asks: str
    """What is looked at, in words."""
    by: Literal["manifest", "trainer", "cluster"]
    """What is needed for an answer: the manifest alone, the trainer's program, or a cluster."""


CHECKS: Final[dict[CheckName, Check]] = {
    "manifest": Check("types, bounds and all rules between fields, layouts and capabilities among them", "manifest"),
    "memory": Check("rows, clips and videos have room in a GPU", "manifest"),
    "version": Check("the image has the trainer that this command knows", "manifest"),
    "storage": Check("the bucket is there and the credentials list it", "trainer"),
    "location": Check("what a URI names is there and may be read", "trainer"),
    "weights": Check("layout, names and shapes of tensors, from headers alone", "trainer"),
    "data": Check("videos, captions, clips and latents are readable and not none", "trainer"),
    "buckets": Check("some clip fits every row", "trainer"),
    "packages": Check("the trainer has the packages that stages ask for", "trainer"),
    "admission": Check("the API server would take the run", "cluster"),
    "secret": Check("Secrets are there, with their keys", "cluster"),
    "queue": Check("the LocalQueue is there, and is let in", "cluster"),
    "nodes": Check("some node fits selector, taints and sizes of every pool", "cluster"),
}
"""In the order in which tables have them."""
assert tuple(CHECKS) == get_args(CheckName)


class Finding(ApiModel):
    """The answer to one check of one field."""

    check: CheckName
    path: str
    """Field, such as `spec.model.weights`."""
    value: Any = None
    """What it has."""
    verdict: Verdict
    message: str
    """What was seen; of what is wrong, what is allowed and where to change it."""
    code: ExitCode | None = Field(default=None)
    """How a worker would end that met it; only of what is wrong."""

    def __str__(self) -> str:
        """`path: value: message`, as problems of a manifest are told."""
        return f"{self.path}: {self.value!r}: {self.message}"


def wrong(findings: Iterable[Finding]) -> list[Finding]:
    """Those for which the run would fail."""
    return [finding for finding in findings if finding.verdict == "wrong"]
