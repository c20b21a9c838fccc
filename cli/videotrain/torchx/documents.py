"""Runs that components make of a manifest: another name, other data, or samples of its trained model."""

from __future__ import annotations

import copy
from pathlib import Path

from torchx.specs import Resource

from videotrain.manifest_file import ManifestFileError, read_manifest
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json
from videotrain_api.storage import layout
from videotrain_api.validation import parse_run


def document_of(manifest: str) -> Json:
    """The VideoTrainingRun of a file.

    Raises:
        ManifestFileError: the file cannot be read, or holds Secrets, which TorchX would print with the application.
    """
    file = read_manifest(Path(manifest))
    if file.secrets:
        raise ManifestFileError(
            f"{manifest}: holds a Secret, which TorchX would print with the application; apply it with kubectl, and "
            "name a file that holds the run alone"
        )
    return file.run


def placed(document: Json, name: str, namespace: str, nodes: Resource | None) -> Json:
    """The run under another name, in another namespace, on other nodes; empty values leave what the manifest says.

    Args:
        document: a VideoTrainingRun.
        name: DNS label.
        namespace: of the cluster.
        nodes: their GPUs, and as capabilities the labels that they have.
    """
    placed = copy.deepcopy(document)
    placed["metadata"] |= {key: value for key, value in (("name", name), ("namespace", namespace)) if value}
    if nodes is not None:
        placed["spec"]["pool"] |= {"gpusPerNode": nodes.gpu, "nodeSelector": dict(nodes.capabilities)}
    return placed


def on_own_videos(document: Json, videos: str, storage: str, weights: str, steps: int, rank: int) -> Json:
    """The run with a folder of videos for its data and its own place in the store; its stages make the rest.

    Args:
        document: a VideoTrainingRun with stages from `curate` on.
        videos: URI of the folder.
        storage: URI under which everything is written; that of the manifest if empty.
        weights: URI of the transformer to begin from; those of the manifest if empty.
        steps: of every train stage; as the manifest says if 0.
        rank: of an adapter for every train stage; as the manifest says if 0.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused, or has no stage that would read the videos.
    """
    run = parse_run(document)
    if not any(stage.curate for stage in run.spec.stages):
        tasks = ", ".join(stage.task for stage in run.spec.stages)
        raise ManifestFileError(
            f"{run.metadata.name}: own videos are read by a `curate` stage, and this run has only {tasks}; name a "
            "manifest that begins with `curate` and `encode`"
        )
    changed = copy.deepcopy(document)
    changed["spec"]["dataset"] = {"videos": videos}
    changed["spec"]["storage"] |= {"uri": storage} if storage else {}
    if weights:
        changed["spec"]["model"] = {**changed["spec"].get("model", {}), "weights": weights}
    for train in (stage["train"] for stage in changed["spec"]["stages"] if stage["task"] == "train"):
        if steps:
            train["steps"] = steps
            rates = train["optimizer"]["learningRate"]
            ended = sum(piece.get("untilStep", steps) < steps for piece in rates)
            last = {key: value for key, value in rates[ended].items() if key != "untilStep"}
            train["optimizer"]["learningRate"] = [*rates[:ended], last]  # no piece begins after the last step
        if rank:
            train["lora"] = {**train.get("lora", {}), "rank": rank}
    return changed


def samples_of(document: Json, prompts: list[str], name: str) -> Json:
    """A run that draws videos from what another run has trained.

    Args:
        document: that other VideoTrainingRun, finished, with a `train` and a `sample` stage.
        prompts: what to draw.
        name: of the new run; `NAME-sample` if empty.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused, or lacks one of these stages.
    """
    run = parse_run(document)
    trained, drawn = _last(run, "train"), _last(run, "sample")
    if trained is None or drawn is None:
        raise ManifestFileError(
            f"{run.metadata.name}: needs a `train` stage, whose weights are drawn from, and a `sample` stage, which "
            "says size, length and guidance"
        )
    changed = copy.deepcopy(document)
    spec = changed["spec"]
    changed["metadata"]["name"] = name or f"{run.metadata.name}-sample"
    spec["model"] = {**spec.get("model", {}), "weights": _weights(run, trained)}
    if autoencoder := _last(run, "autoencoder"):
        spec["autoencoder"] |= {"weights": _weights(run, autoencoder)}
    stage = next(stage for stage in spec["stages"] if stage["name"] == drawn)
    spec["stages"] = [stage]
    stage["sample"] |= {"prompts": [{"text": text} for text in prompts]}
    stage["sample"].pop("fromDataset", None)
    return changed


def _last(run: VideoTrainingRun, task: str) -> str | None:
    names = [stage.name for stage in run.spec.stages if stage.task == task]
    return names[-1] if names else None


def _weights(run: VideoTrainingRun, stage: str) -> str:
    return layout.final_weights(layout.stage_prefix(run.spec.storage.uri, run.metadata.name, stage))
