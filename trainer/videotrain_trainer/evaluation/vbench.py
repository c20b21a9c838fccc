"""A runner for VBench (arXiv 2311.17982). Package and weights are the user's: neither is part of this one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videotrain_api.resource.evaluation import OF_ANY_VIDEOS
from videotrain_trainer.errors import ConfigError, DataError

QUALITY = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}
"""How a video looks, with the scores that VBench's leaderboard counts as 0 and as 1."""
SEMANTIC = {
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
"""How well it shows what was asked for, likewise."""
SUITE = (*QUALITY, *SEMANTIC)
"""Dimensions of VBench's whole suite."""
HALF = "dynamic_degree"
"""It counts half."""
QUALITY_SHARE = 0.8
"""Of quality in the total; the rest is semantics."""
INFO = "VBench_full_info.json"
NAME = "videotrain"


def check(dimensions: Sequence[str], suite: bool) -> None:
    """Refuse what cannot be measured.

    Raises:
        ConfigError: a dimension is unknown, or needs VBench's prompts.
    """
    known = SUITE if suite else OF_ANY_VIDEOS
    for dimension in dimensions:
        if dimension not in known:
            hint = "" if suite or dimension not in SUITE else " on videos of VBench's own prompts (--suite) alone"
            problem = "can be measured" + hint if hint else "is unknown"
            raise ConfigError(f"--dimension: {dimension!r} {problem}; allowed: {', '.join(known)}")


def run(
    videos: Path,
    weights: Path,
    output: Path,
    dimensions: Sequence[str],
    *,
    suite: bool,
    prompts: Mapping[str, str] | None,
    device: str,
) -> dict[str, float]:
    """Let VBench score a folder of videos.

    Args:
        videos: folder with mp4 files; with `suite` named `<prompt>-<number>.mp4` as VBench demands.
        weights: VBench's cache folder with its models; nothing is fetched if they are all there.
        output: folder for VBench's own result files.
        dimensions: what to measure.
        suite: the videos are of VBench's prompts.
        prompts: prompt by file name, for videos of other prompts.
        device: `cuda` or `cpu`.

    Returns:
        Score by dimension.

    Raises:
        ConfigError: the package or its weights are not there, or a dimension cannot be measured.
        DataError: VBench gave no result.
    """
    check(dimensions, suite)
    module = _load(weights)
    output.mkdir(parents=True, exist_ok=True)
    benchmark = module.VBench(_device(device), str(_info(module)), str(output))
    mode = {"mode": "vbench_standard"} if suite else {"mode": "custom_input", "prompt_list": dict(prompts or {})}
    benchmark.evaluate(videos_path=str(videos), name=NAME, dimension_list=list(dimensions), local=True, **mode)
    return _scores(output / f"{NAME}_eval_results.json", dimensions)


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """The leaderboard's quality, semantic and total scores, each from 0 to 1.

    Those of which `scores` has every dimension: a mean of some is no score that anybody published.
    """
    found = {
        name: _mean(scores, ranges)
        for name, ranges in {"quality": QUALITY, "semantic": SEMANTIC}.items()
        if scores.keys() >= ranges.keys()
    }
    if len(found) == 2:
        found["total"] = QUALITY_SHARE * found["quality"] + (1 - QUALITY_SHARE) * found["semantic"]
    return found


def _mean(scores: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> float:
    weights = {name: 0.5 if name == HALF else 1.0 for name in ranges}
    within = {name: (scores[name] - least) / (most - least) for name, (least, most) in ranges.items()}
    return sum(weights[name] * score for name, score in within.items()) / sum(weights.values())


def check_installed(weights: Path, field: str) -> None:
    """Refuse what cannot run, before anything is fetched.

    Args:
        weights: VBench's cache folder.
        field: that asks for it.

    Raises:
        ConfigError: the package or its weights are not there.
    """
    if not weights.is_dir() or not any(weights.iterdir()):
        raise ConfigError(
            f"{field}: {weights} holds nothing; mount the folder that VBench fills as its cache (VBENCH_CACHE_DIR), "
            "with the models of the chosen dimensions"
        )
    if importlib.util.find_spec("vbench") is None:
        raise ConfigError(
            f"{field}: the package vbench is not installed here; install it into this environment (it pins old "
            "versions of torch and transformers, so an environment or image of its own is safer) and mount its weights"
        )


def _load(weights: Path) -> Any:
    check_installed(weights, "--weights")
    # Read when the package is imported, and the second so that a missing file is told instead of fetched.
    os.environ["VBENCH_CACHE_DIR"] = str(weights)
    os.environ["HF_HUB_OFFLINE"] = "1"
    return importlib.import_module("vbench")


def _info(module: Any) -> Path:
    path = Path(module.__file__).parent / INFO
    if not path.is_file():
        raise ConfigError(f"the installed vbench lacks {INFO} in {path.parent}; install a complete release")
    return path


def _device(name: str) -> Any:
    import torch

    return torch.device(name)


def _scores(path: Path, dimensions: Sequence[str]) -> dict[str, float]:
    if not path.is_file():
        raise DataError(f"VBench wrote no {path.name} into {path.parent}; see its output above")
    found = json.loads(path.read_text())
    missing = [dimension for dimension in dimensions if dimension not in found]
    if missing:
        raise DataError(f"{path}: VBench gave no score for {', '.join(missing)}")
    return {dimension: float(found[dimension][0]) for dimension in dimensions}
