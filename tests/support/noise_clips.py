"""Curated sets of clips of noise, and worlds of processes that encode them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from safetensors.torch import save

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.stage_config import LatentReader, StageConfig, StagePaths
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket, EncodeTask, Stage, UnitEngine
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.storage import layout
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.engines import claims
from videotrain_trainer.networks.build import SCALING_FACTOR, build_autoencoder, initialize
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import encode
from videotrain_trainer.worker.stage_context import StageContext, World

ROWS = [
    Bucket(resolution="64px", frames=1, batch_size=1),
    Bucket(resolution="32px", frames=1, batch_size=1),
    Bucket(resolution="32px", frames=16, min_frames=8, batch_size=1, aspect_ratios=["16:9"]),
    Bucket(resolution="64px", frames=16, min_frames=8, batch_size=1, aspect_ratios=["16:9"]),
]
READERS = [
    LatentReader(stage="small", seed=1, buckets=ROWS[:3], prompt_style="fps-motion"),
    LatentReader(stage="large", seed=2, buckets=[ROWS[0], ROWS[3]], prompt_style="fps-motion"),
]
SAMPLES = 4
"""Of each clip: two pictures, and a video at either size."""


def curate_noise(store: ObjectStore, prefix: str, folder: Path, clips: int, frames: int = 20) -> None:
    """A curated set of clips of noise, 160 x 90, and a dropped one.

    Args:
        store: object store.
        prefix: URI of the set.
        folder: for a temporary file.
        clips: how many.
        frames: of each.
    """
    rows = []
    for number in range(clips):
        pixels = np.random.default_rng(number).integers(0, 255, (frames, 90, 160, 3), dtype=np.uint8)
        write_mp4(list(pixels), folder / "clip.mp4", Fraction(24))
        data = (folder / "clip.mp4").read_bytes()
        uid = f"{number:02x}"
        store.put(f"{prefix}/clips/{uid}.mp4", data)
        facts = {"uid": uid, "uri": f"clips/{uid}.mp4", "caption": f"Noise {number}.", "kept": True, "source": "n"}
        facts |= {"frames": frames, "fps": 24.0, "height": 90, "width": 160, "motion": 3.0, "bytes": len(data)}
        rows.append(dict.fromkeys(CLIP_SCHEMA.names) | facts | {"crc32c": google_crc32c.value(data)})
    dropped = dict.fromkeys(CLIP_SCHEMA.names) | {"uid": "00a", "kept": False, "reason": "static"}
    store.put(layout.clip_manifest(prefix), to_parquet([*rows, dropped], CLIP_SCHEMA))


def first_autoencoder(store: ObjectStore, config: StageConfig) -> None:
    """Weights of an autoencoder that was not trained, where a stage reads them."""
    autoencoder = build_autoencoder(config.autoencoder)
    initialize(autoencoder, seed=5)
    uri = layout.final_weights(str(config.paths.autoencoder_weights))
    store.put(uri, save(autoencoder.state_dict(), {SCALING_FACTOR: "2.0"}))


def encode_config(place: str, output: str, engine: UnitEngine = "local") -> StageConfig:
    """An encode stage in units of one clip, for READERS.

    Args:
        place: URI below which its inputs and its output lie.
        output: name of the output.
        engine: who encodes.
    """
    return StageConfig(
        run="default/test",
        stage=Stage(name="encode", task="encode", encode=EncodeTask(shard_bytes=65536, engine=engine)),
        model=complete_transformer(TransformerSpec(preset="mmdit-tiny-dcae")),
        autoencoder=complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny")),
        text_encoder=TextEncoderSpec(max_tokens=48, context_dim=16, pooled_dim=8),
        dataset=Dataset(videos=None),
        storage=Storage(uri="s3://any").model_copy(update={"uri": place}),  # a folder will do here
        checkpoint=CheckpointPolicy(),
        paths=StagePaths(output=f"{place}/{output}", clips=f"{place}/clips", autoencoder_weights=f"{place}/ae"),
        latent_readers=READERS,
        seed=11,
        gpus_per_node=1,
        hang_seconds=60,
        start_seconds=60,
        grace_seconds=20,
    )


def encoded_objects(store: ObjectStore, config: StageConfig) -> dict[str, bytes]:
    """All that a stage has left, but for what it told of its progress."""
    output = config.paths.output
    objects = {found.uri.removeprefix(output): store.get(found.uri) for found in store.list(output)}
    return {name: data for name, data in objects.items() if not name.startswith("/progress")}


@dataclass
class _Nothing:
    """No records, and a drain that nobody asks for."""

    written: list[Any] = field(default_factory=list)

    def write(self, record: Any) -> None:
        self.written.append(record)

    def requested(self) -> bool:
        return False

    def agreed(self) -> bool:
        return False


def encode_rank(config: StageConfig, scratch: Path, rank: int, size: int, generation: int, lapse: float) -> None:
    """One process's part of the stage, to its end.

    Args:
        config: of the stage.
        scratch: folder of all processes.
        rank: of this one.
        size: of the world.
        generation: of the world.
        lapse: seconds without a sign of life after which others take over what a process had claimed.
    """
    claims.LAPSE_SECONDS = lapse
    folder = scratch / f"{generation}-{rank}"
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    context = StageContext(
        config=config,
        world=World(rank=rank, size=size, local_rank=0, device=torch.device("cpu")),
        generation=generation,
        restore=True,
        saved_step=0,
        node="here",
        records=_Nothing(),
        drain=_Nothing(),
        scratch=folder,
        cache=scratch / "cache",
    )
    assert encode.run(context) == "completed"
