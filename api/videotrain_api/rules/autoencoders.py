"""What the adversarial phase of an autoencoder stage asks for."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.config import aspect
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import KINDS
from videotrain_api.resource.stages import AdversarialPhase, AutoencoderTask
from videotrain_api.schema import Problem

_FEWEST_PATCHES = 2


def check_autoencoder_losses(path: str, task: AutoencoderTask, spec: AutoencoderSpec | None) -> Iterator[Problem]:
    """Kind of the autoencoder, length of the clips, begin of the phase and depth of the discriminator."""
    if spec is not None and not KINDS[spec.kind or ""].trainable:
        trainable = ", ".join(name for name, kind in KINDS.items() if kind.trainable)
        allowed = f"only kind {trainable} can be trained: remove the stage and set spec.autoencoder.weights"
        yield Problem(path.removesuffix(".autoencoder") + ".task", "autoencoder", allowed)
    phase = task.adversarial
    if phase is not None:
        if phase.start_step >= task.steps:
            allowed = f"the phase would never begin; allowed: less than steps ({task.steps})"
            yield Problem(f"{path}.adversarial.startStep", phase.start_step, allowed)
        yield from _depth(f"{path}.adversarial.layers", task.bucket.resolution, phase)


def _depth(path: str, resolution: str, phase: AdversarialPhase) -> Iterator[Problem]:
    # A norm over a single position is zero whatever the pixels, so one patch per clip tells nothing.
    if resolution not in aspect.RESOLUTION_NAMES:
        return
    side = aspect.side_of(resolution)
    deepest = max(depth for depth in range(side.bit_length()) if side // 2**depth >= _FEWEST_PATCHES)
    if phase.layers > deepest:
        allowed = f"clips of {resolution} keep 2 x 2 patches up to {deepest} layers; allowed: 1 to {deepest}"
        yield Problem(path, phase.layers, allowed)
