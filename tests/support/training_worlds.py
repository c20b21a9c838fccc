"""Small real training worlds on one machine: synthetic encoded clips, gloo, DeepSpeed, a folder as object store."""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import multiprocessing
import os
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import av
import google_crc32c
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.threads import set_threads
from torch.distributed import distributed_c10d

from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.config.stage_config import StageConfig, StagePaths
from videotrain_api.records import TRAINER_RECORD, CheckpointRecord, SamplesRecord, StartedRecord, StepRecord
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import (
    AutoencoderLayout,
    AutoencoderTask,
    Bucket,
    ConditioningMix,
    LearningRatePiece,
    Optimizer,
    ParallelLayout,
    Stage,
    TrainTask,
)
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.append import append
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, to_parquet, uids_hash
from videotrain_trainer.data.sets import EncodedSetInfo, set_info_uri
from videotrain_trainer.data.shards import ShardWriter
from videotrain_trainer.parallel.zero import ZeroEngine
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.exit_codes import classify
from videotrain_trainer.worker.main import MODULES
from videotrain_trainer.worker.stage_context import CopyPlace, StageContext, World

STORAGE = Storage(uri="s3://unused-bucket")
CHANNELS, TEXT_TOKENS, CONTEXT, POOLED = 4, 6, 16, 8
LEARNING_RATE, AUTOENCODER_LEARNING_RATE = 1e-3, 2e-3
"""The most that AdamW moves a weight in a step, so the size that differences are compared with."""
Size = tuple[int, int, tuple[int, int, int]]
SIZES: dict[str, Size] = {"64px/8f/1:1": (10, 2, (2, 2, 2)), "64px/16f/1:1": (7, 1, (4, 2, 2))}
"""Bucket name to samples, batch size and latent size."""


def store() -> ObjectStore:
    """For file:// URIs."""
    return ObjectStore.for_storage(STORAGE)


def make_latents(folder: Path, broken: bool = False, sizes: dict[str, Size] = SIZES, prefix: str = "") -> str:
    """An encoded set of random latents, by SIZES or others; its URI. If `broken`, all of them are NaN.

    Names of samples begin with `prefix`.
    """
    generator = torch.Generator().manual_seed(0)
    scale = float("nan") if broken else 1.0
    uri, rows = f"file://{folder}/latents", []
    for number, (bucket, (count, _, size)) in enumerate(sizes.items()):
        path = folder / "shard.tar"
        with ShardWriter(path) as shard:
            members = [shard.add(f"{prefix}{number}-{i:02d}", _sample(size, generator, scale)) for i in range(count)]
        name = shard.object_name(bucket, 0)
        store().put(f"{uri}/shards/{name}", path)
        rows += [_row(bucket, size, f"shards/{name}", member) for member in members]
    manifest = to_parquet(rows, LATENT_SCHEMA)
    store().put(f"{uri}/manifest.parquet", manifest)
    store().put(set_info_uri(uri), sealed_json(_info(rows).to_wire()))
    return uri


def _sample(size: tuple[int, int, int], generator: torch.Generator, scale: float) -> dict[str, torch.Tensor]:
    def draw(*shape: int) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    return {
        "latent": draw(CHANNELS, *size),
        "cond_first": draw(CHANNELS, 1, *size[1:]),
        "cond_last": draw(CHANNELS, 1, *size[1:]),
        "context.fps-motion": draw(TEXT_TOKENS, CONTEXT),
        "pooled.fps-motion": draw(POOLED),
    }


def _row(bucket: str, size: tuple[int, int, int], shard: str, member: Any) -> dict[str, Any]:
    resolution, frames, _ = bucket.split("/")
    sizes = dict(zip(("latent_frames", "latent_height", "latent_width"), size, strict=True))
    return {
        "uid": member.name,
        "clip": f"clip-{member.name}",
        "row": f"{resolution}/{frames}",
        "bucket": bucket,
        "shard": shard,
        "offset": member.offset,
        "length": member.length,
        "crc32c": member.crc32c,
        **sizes,
        "frames": int(frames[:-1]),
        "start": 0,
        "fps": 24.0,
        "caption": member.name,
        "source": "synthetic",
        "text_tokens": TEXT_TOKENS,
        "motion": 1.0,
        "blur": 1.0,
        "duration": 1.0,
        "aspect": 1.0,
    }


def _info(rows: list[dict[str, Any]]) -> EncodedSetInfo:
    return EncodedSetInfo(
        samples=len(rows),
        manifest_hash=uids_hash(row["uid"] for row in rows),
        rows=sorted({row["row"] for row in rows}),
        prompts=["fps-motion"],
        latent_channels=CHANNELS,
        spatial_compression=32,
        context_dim=CONTEXT,
        pooled_dim=POOLED,
        text_encoder="bytes",
        autoencoder_weights="none",
    )


def make_clips(folder: Path, count: int = 5, frames: int = 16) -> str:
    """A curated set of moving gradients; its URI."""
    uri, rows = f"file://{folder}/clips", []
    for number in range(count):
        data = _video(number, frames)
        store().put(f"{uri}/clips/clip{number}.mp4", data)
        rows.append(_clip_row(f"clip{number}", data, frames))
    store().put(f"{uri}/manifest.parquet", to_parquet(rows, CLIP_SCHEMA))
    return uri


def _video(number: int, frames: int, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        ramp = np.arange(side, dtype=np.int64)
        for t in range(frames):
            grey = (ramp[:, None] * (number + 1) + ramp[None] * 2 + 8 * t) % 256
            picture = np.stack([grey, grey[::-1], 255 - grey], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _clip_row(uid: str, data: bytes, frames: int) -> dict[str, Any]:
    return {
        "uid": uid,
        "source": f"{uid}.mp4",
        "start": 0.0,
        "end": frames / 24,
        "uri": f"clips/{uid}.mp4",
        "bytes": len(data),
        "crc32c": google_crc32c.value(data),
        "width": 64,
        "height": 64,
        "frames": frames,
        "fps": 24.0,
        "caption": uid,
        "motion": 1.0,
        "blur": 1.0,
        "duration": frames / 24,
        "aspect": 1.0,
        "phash": "",
        "kept": True,
        "reason": "",
        "detail": "",
    }


def autoencoder_config(folder: Path, clips: str, **changes: Any) -> StageConfig:
    """A tiny autoencoder stage that writes to `folder`; `changes` are fields of its task."""
    task: dict[str, Any] = {
        "steps": 6,
        "bucket": Bucket(resolution="64px", frames=8, batch_size=1),
        "optimizer": Optimizer(learning_rate=[LearningRatePiece(value=AUTOENCODER_LEARNING_RATE)], epsilon=1e-8),
        "image_ratio": 0.5,
        "precision": "fp32",
        "parallel": AutoencoderLayout(micro_batches_per_step=2),
    }
    stage = Stage(name="vae", task="autoencoder", autoencoder=AutoencoderTask(**(task | changes)))
    base = train_config(folder, "file:///none")
    paths = StagePaths(output=f"file://{folder}/stage", clips=clips)
    autoencoder = complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny"))
    return base.model_copy(update={"stage": stage, "paths": paths, "autoencoder": autoencoder})


def train_config(folder: Path, latents: str, **changes: Any) -> StageConfig:
    """A tiny train stage that writes to `folder`; `changes` are fields of its task, or of the configuration."""
    task: dict[str, Any] = {
        "steps": 8,
        "buckets": [
            Bucket(resolution="64px", frames=8, batch_size=2),
            Bucket(resolution="64px", frames=16, batch_size=1),
        ],
        "optimizer": Optimizer(
            learning_rate=[LearningRatePiece(value=LEARNING_RATE)], warmup_steps=2, epsilon=1e-8, gradient_clip=1.0
        ),
        "conditioning": ConditioningMix(t2v=1.0, i2v_head=1.0),
        "precision": "fp32",
        "parallel": ParallelLayout(micro_batches_per_step=4),
        "ema_decay": 0.9,
    }
    policy = changes.pop("checkpoint", CheckpointPolicy(every_steps=3, keep_last=2))
    task |= changes
    return StageConfig(
        run="default/test",
        stage=Stage(name="small", task="train", train=TrainTask(**task)),
        model=TransformerSpec(
            hidden_size=32,
            num_heads=2,
            double_blocks=1,
            single_blocks=1,
            mlp_ratio=2.0,
            rope_axes=[4, 6, 6],
            patch_size=1,
            cond_embed=True,
            guidance_embed=False,
        ),
        autoencoder=complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny", latent_channels=CHANNELS)),
        text_encoder=TextEncoderSpec(max_tokens=8, context_dim=CONTEXT, pooled_dim=POOLED),
        dataset=Dataset(latents=latents),
        storage=STORAGE,
        checkpoint=policy,
        paths=StagePaths(output=f"file://{folder}/stage", latents=latents),
        seed=7,
        gpus_per_node=2,
        hang_seconds=60,
        start_seconds=60,
        grace_seconds=30,
    )


@dataclass(frozen=True)
class Plan:
    """What happens to a world."""

    generation: int = 1
    restore: bool = True
    saved_step: int = 0
    nodes: tuple[str, ...] = ("here",)
    """Names of the machines, taken in turn by the ranks."""
    pods: tuple[str, ...] = ()
    """Pods among which the ranks are shared out in order; each has a folder of its name that stands for its memory."""
    drain_during: int | None = None
    """The last rank is asked to stop while this step runs."""
    lose_gradients: bool = False
    """Backward passes of the last rank count for nothing."""
    kill_after: int | None = None
    """The last rank is killed once this step is recorded."""
    kill_before_samples: int | None = None
    """The last rank is killed as it begins to tell what was drawn after this step."""
    drain_from_question: int | None = None
    """The last rank is asked to stop from the so-manieth time on that it looks."""
    backend: str = "inductor"
    """Of torch.compile; `eager` traces as Inductor does, without its minutes of C++."""
    hour_passes_after: int | None = None
    """On the clock of rank 0, once this step is recorded."""
    append_after: tuple[int, str, str] | None = None
    """Once this step is recorded, the second encoded set is appended to the first one."""


@dataclass
class WorldResult:
    """How a world ended."""

    codes: list[int]
    outcomes: list[str]
    records: list[list[Any]] = field(default_factory=list)

    def of(self, kind: type[Any], rank: int = 0) -> list[Any]:
        """Records of one kind."""
        return [record for record in self.records[rank] if isinstance(record, kind)]

    @property
    def steps(self) -> list[StepRecord]:
        """Steps as rank 0 tells them."""
        return self.of_steps(0)

    def of_steps(self, rank: int) -> list[StepRecord]:
        """Steps as a rank tells them."""
        return self.of(StepRecord, rank)

    @property
    def started(self) -> StartedRecord:
        """Start as rank 0 tells it."""
        return self.of(StartedRecord)[0]

    @property
    def checkpoints(self) -> list[CheckpointRecord]:
        """Complete checkpoints as rank 0 tells them."""
        return self.of(CheckpointRecord)


class Sink:
    """Record sink that lets things happen at a step."""

    def __init__(self, path: Path, plan: Plan, rank: int, size: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._plan, self._first, self._last = plan, rank == 0, rank == size - 1
        self._step = self._questions = 0

    def write(self, record: Any) -> None:
        if isinstance(record, SamplesRecord) and self._last and record.step == self._plan.kill_before_samples:
            os.kill(os.getpid(), signal.SIGKILL)
        self._file.write(record.model_dump_json(by_alias=True).encode() + b"\n")
        if isinstance(record, StartedRecord):
            self._step = record.resumed_step
        if isinstance(record, StepRecord) and self._last and record.step == self._plan.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(record, StepRecord) and self._first and self._plan.append_after:
            step, uri, new = self._plan.append_after
            if record.step == step:
                append(store(), uri, new)
        if isinstance(record, StepRecord) and self._first and record.step == self._plan.hour_passes_after:
            clock = time.monotonic
            time.monotonic = lambda: clock() + 3600

    def requested(self) -> bool:
        """Asked once in every step, when it is queued, and while videos are drawn."""
        self._step += 1
        self._questions += 1
        asked = self._plan.drain_from_question is not None and self._questions >= self._plan.drain_from_question
        return self._last and (asked or self._step == self._plan.drain_during)

    def agreed(self) -> bool:
        raise AssertionError("the loop agrees on a drain within its own collective")


def _forbid_pickles_between_ranks() -> None:
    """Neither ours nor a library's: no world of the tests gets through if one is written or read."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a pickle between ranks")

    distributed_c10d._pickler = refuse
    distributed_c10d._unpickler = refuse


def _worker(config: str, folder: str, rank: int, size: int, plan: Plan) -> None:
    set_threads()
    _forbid_pickles_between_ranks()
    where = Path(folder)
    stacks = (where / f"stacks-{rank}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    os.environ["LOCAL_RANK"] = str(rank)
    importlib.import_module("videotrain_trainer.parallel.activation").BACKEND = plan.backend
    if plan.lose_gradients and rank == size - 1:
        backward = ZeroEngine.backward
        ZeroEngine.backward = lambda self, loss, last=True: backward(self, 0.0 * loss, last)  # type: ignore[method-assign]
    sink = Sink(where / f"records-{rank}.jsonl", plan, rank, size)
    code = 0
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
        scratch = where / f"scratch-{rank}"
        scratch.mkdir()
        context = StageContext(
            config=StageConfig.model_validate_json(config),
            world=World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu")),
            generation=plan.generation,
            restore=plan.restore,
            saved_step=plan.saved_step,
            node=plan.nodes[rank % len(plan.nodes)],
            records=sink,
            drain=sink,
            scratch=scratch,
            cache=scratch,
            copies=_copy_place(where.parent / "memory", plan.pods, rank, size),
        )
        task = importlib.import_module(MODULES[context.config.stage.task])
        (where / f"outcome-{rank}").write_text(task.run(context))
        dist.destroy_process_group()
    except BaseException as error:
        import traceback

        (where / f"outcome-{rank}").write_text("".join(traceback.format_exception(error)))
        code = int(classify(error))
    sys.stderr.flush()
    os._exit(code)


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "videotrain_trainer.tasks.train", "videotrain_trainer.tasks.autoencoder"]
)


def _copy_place(memory: Path, pods: tuple[str, ...], rank: int, size: int) -> CopyPlace | None:
    if not pods:
        return None
    each = size // len(pods)
    folder = memory / pods[rank // each]
    folder.mkdir(parents=True, exist_ok=True)
    return CopyPlace(folder=folder, key=b"k" * 32, node_ranks=each)


def run_world(folder: Path, config: StageConfig, size: int, plan: Plan | None = None) -> WorldResult:
    """Run a world of `size` processes to its end."""
    plan = plan or Plan()
    where = folder / f"world-{uuid.uuid4().hex[:8]}"
    where.mkdir(parents=True)
    text = config.model_dump_json(by_alias=True)
    arguments = [(text, str(where), rank, size, plan) for rank in range(size)]
    processes = [_CONTEXT.Process(target=_worker, args=argument) for argument in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    if hung:
        raise AssertionError(_end_hung(processes, hung, where))
    return WorldResult(
        codes=[process.exitcode or 0 for process in processes],
        outcomes=[_text(where / f"outcome-{rank}") for rank in range(size)],
        records=[_records(where / f"records-{rank}.jsonl", config) for rank in range(size)],
    )


def _end_hung(processes: list[Any], hung: list[int], where: Path) -> str:
    """What each rank has come to, and the stacks of those that do not end by themselves."""
    for rank in hung:
        os.kill(processes[rank].pid, signal.SIGUSR1)
    for rank in hung:
        processes[rank].join(2)  # the handler writes at once; nothing tells when it is done
        processes[rank].kill()
        processes[rank].join()
    ends = [f"rank {rank}: code {p.exitcode}, {_text(where / f'outcome-{rank}')}" for rank, p in enumerate(processes)]
    stacks = [f"rank {rank} stands at\n{_text(where / f'stacks-{rank}')}" for rank in hung]
    return "\n".join([f"{len(hung)} of {len(processes)} processes hang", *ends, *stacks])


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "killed"


def _records(path: Path, config: StageConfig) -> list[Any]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [TRAINER_RECORD.validate_json(line) for line in lines]
    assert all(record.config_hash == config.hash() for record in found)
    return found


def commit_of(folder: Path, step: int) -> CheckpointManifest:
    """The commit manifest of a step."""
    path = folder / f"stage/checkpoints/step-{step:08d}/commit.json"
    return CheckpointManifest.model_validate_json(path.read_bytes())


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported weights."""
    return load_file(folder / "stage/weights/model.safetensors")


def trained_ids(folder: Path, manifest: CheckpointManifest) -> list[str]:
    """All samples of a checkpoint, in order."""
    lines = [
        json.loads(line)
        for segment in manifest.order
        for line in Path(segment.uri.removeprefix("file://")).read_text().splitlines()
    ]
    return [uid for line in lines for uid in line["ids"]]


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of weights."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
