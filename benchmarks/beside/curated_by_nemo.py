"""NeMo Curator's stages that run on a CPU, in an environment of its own: for `benchmarks/curation_beside_ffmpeg.py`.

Its detector of shots moves frames to a GPU, as do its embeddings and scores of pictures, so clips are cut at a fixed
length here. Its H.264 encoders are NVENC and an OpenH264 that users bring, so clips are VP9, the one that is left.
Motion is scored by the codec's vectors, which a decoder of VP9 does not give.
"""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
from loguru import logger
from nemo_curator.stages.video.clipping import transnetv2_extraction as shots
from nemo_curator.stages.video.clipping.clip_extraction_stages import ClipTranscodingStage, FixedStrideExtractorStage
from nemo_curator.stages.video.filtering.motion_filter import MotionFilterStage, MotionVectorDecodeStage
from nemo_curator.stages.video.io.video_reader import VideoReaderStage
from nemo_curator.tasks.file_group import FileGroupTask

SECONDS = 4.0


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def curated(path: str, encoder: str) -> dict[str, object]:
    """Processor seconds of each stage, clips that came out, and what went wrong with them."""
    fixed = FixedStrideExtractorStage(clip_len_s=SECONDS, clip_stride_s=SECONDS, min_clip_length_s=1.0, limit_clips=0)
    stages = [VideoReaderStage(), fixed, ClipTranscodingStage(num_cpus_per_worker=1, encoder=encoder)]
    stages += [MotionVectorDecodeStage(num_cpus_per_worker=1), MotionFilterStage(score_only=True)]
    tasks, seconds = [FileGroupTask(dataset_name="beside", data=[path])], {}
    for stage in stages:
        began = processor_seconds()
        stage.setup()
        found = [stage.process(task) for task in tasks]
        tasks = [one for some in found for one in (some if isinstance(some, list) else [some])]
        seconds[stage.name] = processor_seconds() - began
    clips = [clip for task in tasks for clip in task.data.clips]
    return {
        "seconds": seconds,
        "clips": len(clips),
        "bytes": sum(len(clip.buffer or b"") for clip in clips),
        "motion": [clip.motion_score_global_mean for clip in clips],
        "errors": sorted({f"{name}: {text}" for clip in clips for name, text in clip.errors.items()}),
    }


def refusal_of_shots() -> str:
    """What its detector of shots says without a GPU."""
    try:
        shots._get_predictions(lambda batch: batch, np.zeros((60, 27, 48, 3), np.uint8), 0.4)
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    logger.remove()
    encoder, *paths = sys.argv[1:]
    VideoReaderStage().process(FileGroupTask(dataset_name="beside", data=paths[:1]))  # loads what is loaded once
    rows = [curated(path, encoder) for path in paths]
    print(json.dumps({"videos": rows, "refusal": refusal_of_shots()}))
