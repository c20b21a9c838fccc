"""What may be changed after a run was created, and when.

Live fields take effect on a running world. Thawed fields describe the pods and may change only while no pod exists, so
that all members of a world are alike. Everything else decides what is trained, and is fixed with the first pods.
"""

from __future__ import annotations

from typing import Final

LIVE: Final = (
    "activeDeadlineSeconds",
    "budget",
    "elasticity",
    "nodes",
    "startDeadlineSeconds",
    "suspend",
    "ttlSecondsAfterFinished",
)
"""Fields of spec that may change at any time; also `nodes` of each stage and what FIXED_FAILURE_POLICY leaves."""
THAWED: Final = ("image", "imagePullPolicy", "pool", "queue")
"""Fields of spec that may change while the run holds no pod: it is suspended, or was never accepted."""
FIXED: Final = ("autoencoder", "checkpoint", "dataset", "model", "seed", "storage", "textEncoder")
"""Fields of spec that never change. podTemplate is fixed as well, but CEL cannot look into it: the operator tells."""
FIXED_POOL: Final = ("gpusPerNode", "gpuResource", "currency")
"""Fields of pool that not even a suspended run may change: the bill and the world sizes rest on them."""
FIXED_FAILURE_POLICY: Final = ("hangSeconds", "startSeconds", "graceSeconds")
"""Fields of failurePolicy that are part of running pods."""
STAGE_MEMBERS: Final = ("curate", "autoencoder", "encode", "train", "sample")
