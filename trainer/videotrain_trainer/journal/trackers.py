"""Experiment trackers, each through its own package, behind one interface.

All are told by one thread of one process. Those that keep files keep them in a folder of this generation, which is
stored whole at every checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from videotrain_api.billing.document import RunBill
from videotrain_api.money import MICROS
from videotrain_api.resource.tracking import Tracker as Name
from videotrain_api.resource.tracking import Tracking
from videotrain_api.vocabulary import LABEL_RUN_UID
from videotrain_trainer.journal.bill_markdown import bill_markdown

BILL: Final = "run/bill"
"""Where the bill is told of: no stage has such a name, nor a curve of one."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What every tracker is told of a run when it begins."""

    uid: str
    """Of the run; the id of its curve."""
    name: str
    """namespace/name."""
    config: Mapping[str, Any]
    """Configuration of the stage, as JSON values."""
    folder: Path
    """Of this tracker's files; empty, or what was stored before (`Trackio.CONTINUES`)."""
    tracking: Tracking


class Tracker(Protocol):
    """Somewhere that shows curves. Failures are raised as whatever the package raises."""

    CONTINUES: bool
    """Whether its files of earlier generations are needed to go on."""

    def told(self, stage: str) -> int:
        """Newest step of a stage that it has whether its files were stored or not; 0 if nobody but the files knows."""

    def scalars(self, stage: str, step: int, values: Mapping[str, float], at: datetime) -> None:
        """Values after a step."""

    def video(self, stage: str, step: int, name: str, path: Path, caption: str) -> None:
        """A video that was drawn."""

    def bill(self, bill: RunBill, path: Path) -> None:
        """What the run cost, once it is over, and the file with it: beside all stages, and again in the same place."""

    def flush(self) -> None:
        """Have everything where it outlives this process, or in the folder."""

    def close(self) -> None:
        """End it; nothing is told afterwards."""


class TensorBoard:
    """Event files, a folder for each stage."""

    CONTINUES = False

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder
        self._writers: dict[str, Any] = {}

    def told(self, stage: str) -> int:
        """See Tracker."""
        del stage
        return 0

    def scalars(self, stage: str, step: int, values: Mapping[str, float], at: datetime) -> None:
        """See Tracker."""
        from torch.utils.tensorboard import SummaryWriter

        if stage not in self._writers:
            # What another generation wrote of this step or later ones is not shown.
            self._writers[stage] = SummaryWriter(str(self._folder / stage), purge_step=step)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step, walltime=at.timestamp())

    def video(self, stage: str, step: int, name: str, path: Path, caption: str) -> None:
        """TensorBoard shows no mp4 files: its caption and name are told."""
        from torch.utils.tensorboard import SummaryWriter

        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(str(self._folder / stage))
        self._writers[stage].add_text(name, f"{path.name}: {caption}", step)

    def bill(self, bill: RunBill, path: Path) -> None:
        """TensorBoard shows no files: the bill's tables as text, with the file beside."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / BILL
        self._writers[BILL] = SummaryWriter(str(folder))
        self._writers[BILL].add_text("bill", bill_markdown(bill), 0)
        shutil.copyfile(path, folder / path.name)

    def flush(self) -> None:
        """See Tracker."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """See Tracker."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """W&B: a folder for each flush in offline mode, to be joined by `wandb sync --append`; else its server."""

    CONTINUES = False

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._open: Any = None
        self._stages: set[str] = set()

    def told(self, stage: str) -> int:
        """See Tracker."""
        del stage
        return 0

    def scalars(self, stage: str, step: int, values: Mapping[str, float], at: datetime) -> None:
        """See Tracker."""
        self._opened(stage).log(
            {f"{stage}/{name}": value for name, value in values.items()}
            | {f"{stage}/step": step, "seconds": at.timestamp()}
        )

    def video(self, stage: str, step: int, name: str, path: Path, caption: str) -> None:
        """See Tracker."""
        import wandb

        shown = wandb.Video(str(path), caption=caption, format="mp4")
        self._opened(stage).log({f"{stage}/{name}": shown, f"{stage}/step": step})

    def bill(self, bill: RunBill, path: Path) -> None:
        """A file of the run, which is there offline too (artifacts are kept elsewhere), and what its tables compare."""
        run = self._begun()
        run.summary.update({"cost": bill.total_micros / MICROS, "currency": bill.currency})
        # Where the run's own files are; for another place it would leave a link to it.
        kept = Path(run.dir) / path.name
        shutil.copyfile(path, kept)
        run.save(str(kept), base_path=run.dir, policy="now")

    def flush(self) -> None:
        """See Tracker. An offline folder is complete only when its run has ended."""
        if self._run.tracking.wandb_mode == "offline":
            self.close()

    def close(self) -> None:
        """See Tracker. Its server takes a run that is not finished for one that crashed."""
        if self._open is not None:
            self._open.finish()
            self._open, self._stages = None, set()

    def _opened(self, stage: str) -> Any:
        run = self._begun()
        if stage not in self._stages:
            # Stages count their own steps; W&B's own counter only rises.
            run.define_metric(f"{stage}/step")
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        return run

    def _begun(self) -> Any:
        import wandb

        if self._open is None:
            self._run.folder.mkdir(parents=True, exist_ok=True)
            self._open = wandb.init(
                project=self._run.tracking.project,
                id=self._run.uid,
                name=self._run.name,
                resume="allow",
                dir=str(self._run.folder),
                config=dict(self._run.config),
                mode=self._run.tracking.wandb_mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
        return self._open


class Mlflow:
    """A tracking server of MLflow; the run is found by a tag, since the server makes its ids."""

    CONTINUES = False

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._run_id = run, ""
        self._opened_client: Any = None
        # By default the package asks for more than ten minutes; what is missed is told with the next checkpoint.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def told(self, stage: str) -> int:
        """See Tracker: the server has it as soon as it is told."""
        client = self._client()
        return max((each.step for each in client.get_metric_history(self._run_id, f"{stage}/step")), default=0)

    def scalars(self, stage: str, step: int, values: Mapping[str, float], at: datetime) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        client, milliseconds = self._client(), int(at.timestamp() * 1000)
        told = {**values, "step": float(step)}  # `step` last: who resumes asks for it
        metrics = [Metric(f"{stage}/{name}", value, milliseconds, step) for name, value in told.items()]
        client.log_batch(self._run_id, metrics=metrics)

    def video(self, stage: str, step: int, name: str, path: Path, caption: str) -> None:
        """See Tracker."""
        client = self._client()
        client.log_artifact(self._run_id, str(path), f"{stage}/step-{step}")
        client.set_tag(self._run_id, f"{stage}/{name}", caption[:5000])

    def bill(self, bill: RunBill, path: Path) -> None:
        """See Tracker."""
        client = self._client()
        client.log_artifact(self._run_id, str(path))
        client.set_tag(self._run_id, "currency", bill.currency)
        client.log_metric(self._run_id, "cost", bill.total_micros / MICROS)

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _client(self) -> Any:
        if self._opened_client is not None:
            return self._opened_client
        from mlflow import MlflowClient, MlflowException

        client, tracking = MlflowClient(tracking_uri=self._run.tracking.uri), self._run.tracking
        found = client.get_experiment_by_name(tracking.project)
        try:
            experiment = found.experiment_id if found is not None else client.create_experiment(tracking.project)
        except MlflowException:
            found = client.get_experiment_by_name(tracking.project)
            if found is None:
                raise
            experiment = found.experiment_id  # another run made it meanwhile
        runs = client.search_runs(
            [experiment], filter_string=f"tags.`{LABEL_RUN_UID}` = '{self._run.uid}'", max_results=1
        )
        if runs:
            self._run_id = runs[0].info.run_id
        else:
            made = client.create_run(experiment, run_name=self._run.name, tags={LABEL_RUN_UID: self._run.uid})
            self._run_id = made.info.run_id
        self._opened_client = client
        return client


class Trackio:
    """A Trackio database, which every generation goes on with."""

    CONTINUES = True

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._open = run, False
        # The package reads it once, when it is imported.
        os.environ["TRACKIO_DIR"] = str(run.folder)

    def told(self, stage: str) -> int:
        """See Tracker."""
        del stage
        return 0

    def scalars(self, stage: str, step: int, values: Mapping[str, float], at: datetime) -> None:
        """See Tracker."""
        del at
        self._package().log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def video(self, stage: str, step: int, name: str, path: Path, caption: str) -> None:
        """See Tracker."""
        package = self._package()
        package.log({f"{stage}/{name}": package.Video(str(path), caption=caption, format="mp4")}, step=step)

    def bill(self, bill: RunBill, path: Path) -> None:
        """An artifact; the same content makes no second version."""
        package = self._package()
        facts = {"total": bill.total, "currency": bill.currency}
        artifact = package.Artifact(name=f"bill-{self._run.uid}", type="bill", metadata=facts)
        artifact.add_file(path)
        package.log_artifact(artifact)

    def flush(self) -> None:
        """See Tracker. Its thread has written everything when the run has ended."""
        if self._open:
            self._package().finish()
            self._open = False

    def close(self) -> None:
        """See Tracker."""
        self.flush()

    def _package(self) -> Any:
        import trackio

        if not self._open:
            self._run.folder.mkdir(parents=True, exist_ok=True)
            trackio.init(
                project=self._run.tracking.project,
                name=self._run.uid,
                config=dict(self._run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            self._open = True
        return trackio


TRACKERS: dict[Name, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
