"""Files and environment of a worker pod, as the agent and its workers see them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from videotrain_api import vocabulary as names
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.signing import KEY_BYTES
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import replacing


def require(environment: Mapping[str, str], name: str) -> str:
    """Value of an environment variable.

    Raises:
        ConfigError: it is not set.
    """
    value = environment.get(name)
    if not value:
        raise ConfigError(f"environment variable {name} is not set; the operator sets it on every worker pod")
    return value


@dataclass(frozen=True, kw_only=True)
class Pod:
    """Identity and directories of the pod that this process runs in."""

    name: str
    uid: str
    address: str
    run: str
    namespace: str
    root: Path
    replaceable: bool = False
    """A queue replaces it if its exit code says that its work is not complete."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Pod:
        """The pod that the environment describes.

        Raises:
            ConfigError: a variable is missing.
        """
        return cls(
            name=require(environment, names.ENV_POD_NAME),
            uid=require(environment, names.ENV_POD_UID),
            address=require(environment, names.ENV_POD_IP),
            run=require(environment, names.ENV_RUN),
            namespace=require(environment, names.ENV_NAMESPACE),
            root=Path(environment.get(names.ENV_POD_ROOT, "/")),
            replaceable=environment.get(names.ENV_REPLACEABLE) == "1",
        )

    @property
    def roster_file(self) -> Path:
        """The mounted roster; see DIR_ROSTER for how late it may be."""
        return self.root / names.DIR_ROSTER / names.ROSTER_KEY

    def signing_key(self) -> bytes:
        """By which operator and agents of the run prove to each other who they are.

        Raises:
            ConfigError: the Secret is not mounted, or the file cannot be read.
        """
        file = self.root / names.DIR_KEY / names.SIGNING_KEY
        try:
            key = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}; the pod mounts the Secret of the run's key there") from None
        if len(key) < KEY_BYTES:
            raise ConfigError(f"{file} has {len(key)} bytes; a signing key has {KEY_BYTES}")
        return key

    @property
    def cache(self) -> Path:
        """What may outlive a generation: fetched bytes and compiled code. Shared by the pod's workers."""
        return self.root / names.DIR_CACHE

    @property
    def files(self) -> RunFiles:
        """Scratch shared by agent and workers."""
        return RunFiles(self.root / names.DIR_RUN)

    @property
    def spec_file(self) -> Path:
        """The frozen spec of the run."""
        return self.root / names.DIR_CONFIG / names.FROZEN_SPEC_KEY

    def config_file(self, stage: str) -> Path:
        """Frozen configuration of a stage."""
        return self.root / names.DIR_CONFIG / f"{stage}.json"


@dataclass(frozen=True)
class RunFiles:
    """Paths of the files below DIR_RUN by which the agent and the workers of a generation speak."""

    directory: Path

    def records(self, generation: int, local_rank: int) -> Path:
        """Records of a worker, one JSON document per line."""
        return self.directory / f"records-{generation}-{local_rank}.jsonl"

    def exit(self, generation: int, local_rank: int) -> Path:
        """How a worker ended, in its own words."""
        return self.directory / f"exit-{generation}-{local_rank}.json"

    def stacks(self, generation: int, local_rank: int) -> Path:
        """Stacks of a worker, written on SIGUSR1 or by the agent."""
        return self.directory / f"stacks-{generation}-{local_rank}.txt"

    def output(self, generation: int, local_rank: int) -> Path:
        """Pipe into which a worker prints; the agent makes it."""
        return self.directory / f"output-{generation}-{local_rank}.pipe"

    def worker(self, generation: int, local_rank: int) -> Path:
        """Process id of a worker that obeys SIGTERM."""
        return self.directory / f"worker-{generation}-{local_rank}.pid"

    def profile_request(self, generation: int) -> Path:
        """ProfileRequest for the workers of a generation; absent until there is one."""
        return self.directory / f"profile-{generation}.json"

    def scratch(self, generation: int, local_rank: int) -> Path:
        """Temporary files of a worker; removed by the agent when the generation has ended."""
        return self.directory / f"scratch-{generation}-{local_rank}"

    def config(self, generation: int, stage: str) -> Path:
        """Configuration of a stage that was edited after the pod was made, as the roster brought it."""
        return self.directory / f"config-{generation}" / f"{stage}.json"

    def launcher(self, generation: int) -> Path:
        """Files that torch's launcher keeps about its workers."""
        return self.directory / f"launcher-{generation}"

    def tidy(self, generation: int, processes: int) -> None:
        """Remove what nobody needs after the generation's end; records, exits and stacks stay."""
        shutil.rmtree(self.launcher(generation), ignore_errors=True)
        self.profile_request(generation).unlink(missing_ok=True)
        for local_rank in range(processes):
            shutil.rmtree(self.scratch(generation, local_rank), ignore_errors=True)
            self.worker(generation, local_rank).unlink(missing_ok=True)
            stacks = self.stacks(generation, local_rank)
            if stacks.exists() and stacks.stat().st_size == 0:
                stacks.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old text or the new one."""
    with replacing(path, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")


def load_config(path: Path) -> StageConfig:
    """Read a stage's frozen configuration.

    Raises:
        ConfigError: the file is missing or does not fit this version.
    """
    try:
        return StageConfig.from_stored(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; the pod mounts the run's ConfigMap there") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
