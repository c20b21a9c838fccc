"""What those who run a cluster set for every run: defaults, and which of them no run may override."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from videotrain_api.resource.pool import (
    EnvName,
    EnvValue,
    LabelKey,
    LabelValue,
    ObjectName,
    PodTemplate,
    Toleration,
)
from videotrain_api.resource.trainrun import LONGEST_SECONDS
from videotrain_api.schema import ApiModel, patterned

DefaultName = Literal[
    "activeDeadlineSeconds",
    "env",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "nodeSelector",
    "podTemplate",
    "registry",
    "startDeadlineSeconds",
    "tolerations",
    "ttlSecondsAfterFinished",
]
"""A default that can be enforced."""
LIMITS: Final[tuple[DefaultName, ...]] = ("activeDeadlineSeconds", "startDeadlineSeconds", "ttlSecondsAfterFinished")
"""Of which a run may have less where they are enforced."""
CLOSED: Final[tuple[DefaultName, ...]] = ("tolerations", "imagePullSecrets")
"""Lists to which a run may add nothing where they are enforced; enforced without entries, it may have none."""
REGISTRY: Final = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*$"
Registry = Annotated[
    str,
    patterned(
        REGISTRY,
        "HOST[:PORT][/PATH] without a slash at the end, such as registry.example.com/mirror",
        max_length=255,
    ),
]


class HeldDefaults(ApiModel):
    """Defaults that a run keeps as long as it holds pods: all members of a world run one program with one environment,
    and no limit falls on a run that began under another.
    """

    image: str | None = Field(default=None, min_length=1, max_length=512)
    """Trainer image of runs that name none."""
    registry: Registry | None = None
    """Registry of images that name none, also of sidecars. Enforced: no image of a run comes from another."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As spec.imagePullPolicy."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=64)
    """Environment of the workers, as spec.pool.env, which adds to it."""
    start_deadline_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """As spec.startDeadlineSeconds. Enforced: the most that a run may have, as of the next two."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """As spec.activeDeadlineSeconds."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """As spec.ttlSecondsAfterFinished."""
    enforced: list[DefaultName] = Field(default_factory=list, max_length=16)
    """Names of the defaults that no run may override."""


class RunDefaults(HeldDefaults):
    """Everything that can be set for every run; what stands here goes into each pod that is made from then on."""

    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Image pull secrets beside spec.pool.imagePullSecrets."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    """Labels that a node must have, beside spec.pool.nodeSelector."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    """Tolerations beside spec.pool.tolerations."""
    pod_template: PodTemplate | None = None
    """Labels, annotations, sidecars and whatever else worker pods get; a run's spec.podTemplate is laid over it, or
    below it where it is enforced."""

    def held(self) -> HeldDefaults | None:
        """What a run that holds no pods takes of them; None if that is nothing."""
        given: dict[str, Any] = {name: getattr(self, name) for name in HeldDefaults.model_fields}
        held = HeldDefaults(**given | {"enforced": [name for name in self.enforced if name in _HELD]})
        return held if held != HeldDefaults() else None

    def holding(self, held: HeldDefaults | None) -> RunDefaults:
        """These, with what a run holds instead of the present ones of the kind."""
        held = held or HeldDefaults()
        given: dict[str, Any] = {name: getattr(held, name) for name in HeldDefaults.model_fields}
        given["enforced"] = [*held.enforced, *(name for name in self.enforced if name not in _HELD)]
        return self.model_copy(update=given)


_HELD: Final = frozenset(info.alias or name for name, info in HeldDefaults.model_fields.items())
