"""Where a run's curves and videos are shown beside its own report."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from videotrain_api.resource.locations import Location
from videotrain_api.schema import ApiModel

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
TRACKERS: Final[tuple[Tracker, ...]] = get_args(Tracker)
TRACKER_PACKAGES: Final[dict[Tracker, str]] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
"""The package that each needs, which the extra of its name brings to the trainer."""


class Tracking(ApiModel):
    """Experiment trackers that rank 0 tells of losses, rates and drawn videos. A run is one curve in each, whatever
    restarts and resizes it had: its id is the uid of the run, and a step that is done again is told once.
    """

    to: list[Tracker] = Field(default_factory=list, max_length=4)
    """Whom to tell; nobody if empty. What lies in files (tensorboard, wandb, trackio) is stored below `tracking/` of
    the run's folder in spec.storage, at every checkpoint."""
    project: Annotated[str, Field(min_length=1, max_length=128)] = "videotrain"
    """Project of W&B and Trackio, experiment of MLflow."""
    every_steps: int = Field(default=10, ge=1, le=1_000_000_000)
    """Tell every so many steps, and the last one."""
    uri: Location | None = None
    """Server of MLflow, such as http://mlflow:5000; needed by mlflow. Keys and tokens belong into a Secret that
    podTemplate brings into the environment."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline` leaves folders for `wandb sync --append`; `online` needs WANDB_API_KEY and a network policy that lets
    pods out."""
