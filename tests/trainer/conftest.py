from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
import torch.distributed as dist
from moto.server import ThreadedMotoServer
from support.model_fixtures import fixture, mmdit, threads

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.stage_config import LatentReader, StageConfig, StagePaths
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import (
    AutoencoderLayout,
    AutoencoderTask,
    Bucket,
    CurateTask,
    EncodeTask,
    LearningRatePiece,
    Optimizer,
    ParallelLayout,
    Stage,
    TrainTask,
)
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext, World

__all__ = ["fixture", "mmdit", "threads"]

OPTIMIZER = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an encoded set of random latents, for small real worlds."""
    from support.training_worlds import make_latents  # brings DeepSpeed, which most tests do without

    return make_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def alone() -> Iterator[None]:
    """The process group of a world of one, as a worker process makes it before its task runs."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Endpoint of an S3 server with the bucket `bucket`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="AK", aws_secret_access_key="SK"
    )
    client.create_bucket(Bucket="bucket")
    yield url
    server.stop()


@pytest.fixture
def storage(s3: str, tmp_path: Path) -> Storage:
    return Storage(uri=f"s3://bucket/{tmp_path.name}", endpoint_url=s3)


@pytest.fixture
def store(storage: Storage) -> ObjectStore:
    return ObjectStore.for_storage(storage)


@dataclass
class Records:
    """A record sink that keeps what it gets."""

    all: list = field(default_factory=list)

    def write(self, record) -> None:
        self.all.append(record)

    def steps(self) -> list[int]:
        return [record.step for record in self.all if record.kind == "step"]


@dataclass
class FakeDrain:
    """A drain that is asked for after so many looks."""

    after: int = 10**9
    looks: int = 0

    def requested(self) -> bool:
        self.looks += 1
        return self.looks > self.after

    def agreed(self) -> bool:
        return self.requested()


@pytest.fixture
def drain_after() -> Callable[[int], FakeDrain]:
    return FakeDrain


@pytest.fixture
def make_config(storage: Storage) -> Callable[..., StageConfig]:
    """Stage configurations by keyword; `task` is the member of the stage."""

    def make(task, videos: str | None = None, encode_rows: list[Bucket] | None = None, **paths: str) -> StageConfig:
        kinds = {CurateTask: "curate", EncodeTask: "encode", TrainTask: "train", AutoencoderTask: "autoencoder"}
        kind = kinds[type(task)]
        output = paths.pop("output", f"{storage.uri}/{kind}")
        return StageConfig(
            run="default/test",
            stage=Stage(name=kind, task=kind, **{kind: task}),
            model=complete_transformer(TransformerSpec(preset="mmdit-tiny-dcae")),
            autoencoder=complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny")),
            text_encoder=TextEncoderSpec(max_tokens=48, context_dim=16, pooled_dim=8),
            dataset=Dataset(videos=videos, captions={"named": "a caption from the manifest"}),
            storage=storage,
            checkpoint=CheckpointPolicy(),
            paths=StagePaths(output=output, **paths),
            latent_readers=[
                LatentReader(stage="train", seed=11, buckets=encode_rows, prompt_style=style)
                for style in ("fps-motion", "plain")
                if encode_rows
            ],
            seed=11,
            gpus_per_node=1,
            hang_seconds=60,
            start_seconds=60,
            grace_seconds=20,
        )

    return make


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StageContext]:
    """Contexts of one rank; `.records.all` holds what was written."""

    def make(
        config: StageConfig, rank: int = 0, size: int = 1, drain: FakeDrain | None = None, generation: int = 1
    ) -> StageContext:
        scratch = tmp_path / f"scratch-{rank}-of-{size}"
        scratch.mkdir(exist_ok=True)
        return StageContext(
            config=config,
            world=World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu")),
            generation=generation,
            restore=True,
            saved_step=0,
            node="here",
            records=Records(),
            drain=drain or FakeDrain(),
            scratch=scratch,
            cache=tmp_path / "cache",
        )

    return make


@pytest.fixture
def train_task() -> Callable[..., TrainTask]:
    def make(rows: list[Bucket], micro_batches: int = 2, **fields) -> TrainTask:
        layout = ParallelLayout(micro_batches_per_step=micro_batches)
        return TrainTask(steps=4, buckets=rows, optimizer=OPTIMIZER, parallel=layout, **fields)

    return make


@pytest.fixture
def autoencoder_task() -> Callable[..., AutoencoderTask]:
    def make(row: Bucket, micro_batches: int = 2) -> AutoencoderTask:
        layout = AutoencoderLayout(micro_batches_per_step=micro_batches)
        return AutoencoderTask(steps=4, bucket=row, optimizer=OPTIMIZER, parallel=layout)

    return make


Painter = Callable[[int], np.ndarray]


@pytest.fixture(scope="session")
def paint_video() -> Callable[..., Path]:
    """Writes a generated video: `scene(number)` paints a frame."""

    def write(path: Path, frames: int, scene: Painter, fps: int = 24, crf: int = 10) -> Path:
        write_mp4((scene(number) for number in range(frames)), path, Fraction(fps), crf=crf)
        return path

    return write


@pytest.fixture(scope="session")
def texture() -> Callable[..., Painter]:
    """A textured scene that moves `speed` pixels per frame; seeds give scenes that do not look alike."""

    def make(seed: int, speed: int = 2, height: int = 96, width: int = 160) -> Painter:
        draw = np.random.default_rng(seed)
        coarse = draw.integers(0, 256, (height // 16 + 1, 2 * width // 16 + 1, 3), dtype=np.uint8)
        wide = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, : 2 * width]
        return lambda number: np.ascontiguousarray(np.roll(wide, -speed * number, axis=1)[:, :width])

    return make
