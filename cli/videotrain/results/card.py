"""README.md of an export: the model card of the Hugging Face hub, made of what a folder of results tells.

Its head is YAML as the hub reads it. Nothing is invented: what the folder does not tell is said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from videotrain import __version__
from videotrain.errors import UsageError
from videotrain.manifest_file import read_manifest
from videotrain.results.data_manifest import FILE as DATA
from videotrain.results.folder import MANIFEST
from videotrain_api.resource.locations import hub_place
from videotrain_api.resource.stages import Stage, TrainTask
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.storage.layout import BILL_FILE
from videotrain_api.validation import parse_run

CARD: Final = "README.md"
ADAPTER_LAYOUT: Final = "adapter"
"""Exports an adapter alone."""
_USE: Final = {
    ADAPTER_LAYOUT: """With diffusers, onto the base model as `videotrain export --to diffusers` writes it:

```python
from diffusers import FluxTransformer2DModel

transformer = FluxTransformer2DModel.from_pretrained("BASE", subfolder="transformer")
transformer.load_lora_adapter("THIS", weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
```

`adapter_config.json` and `adapter_model.safetensors` are PEFT's layout, by the names of Open-Sora's own files:
`videotrain_trainer.models.load("Open_Sora_v2.safetensors", adapter="THIS")` merges it in.
""",
    "diffusers": """```python
from diffusers import FluxTransformer2DModel

transformer = FluxTransformer2DModel.from_pretrained("THIS", subfolder="transformer")
```

`videotrain_trainer.models.import_diffusers("THIS")` loads transformer and autoencoder, and
`videotrain_trainer.models.sample` draws with them.
""",
    "open-sora-v2": """The files have the names and tensor names of Open-Sora 2.0:
`videotrain-trainer sample --model-weights Open_Sora_v2.safetensors --autoencoder-weights hunyuan_vae.safetensors`.
""",
}


@dataclass(frozen=True)
class CardChoices:
    """What no file of a run tells."""

    layout: str
    """What is exported: `diffusers`, `open-sora-v2` or `adapter`."""
    licence: str | None = None
    """Identifier of the hub, such as apache-2.0."""
    base_model: str | None = None
    """Repository of the hub that the weights come from; that of spec.model.weights if that is on the hub."""


def model_card(folder: Path, choices: CardChoices) -> str:
    """The card of what is exported from a folder of results.

    Raises:
        UsageError: the folder's manifest cannot be read.
    """
    run = _run(folder)
    texts = [
        _front(run, choices),
        f"# {run.metadata.name}\n\n{_what(run, choices)}\n",
        "## Use\n\n" + _USE[choices.layout],
        "## Training\n\n" + "\n".join(_training(run, _document(folder, "summary.json"))) + "\n",
        "## Data\n\n" + "\n".join(_data(folder)) + "\n",
        "## Cost\n\n" + "\n".join(_cost(_document(folder, BILL_FILE))) + "\n",
        "## Versions\n\n" + "\n".join(_versions(_document(folder, "summary.json"))) + "\n",
    ]
    return "\n".join(texts)


def _run(folder: Path) -> VideoTrainingRun:
    try:
        return parse_run(read_manifest(folder / MANIFEST).run, fitting=False)
    except ManifestError as error:
        raise UsageError(f"{folder / MANIFEST}: {error}") from None


def _document(folder: Path, name: str) -> Json:
    """A JSON file of the folder; empty if it is not there."""
    try:
        found: Json = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{folder / name}: no JSON: {error}") from None
    return found


def _base(run: VideoTrainingRun, choices: CardChoices) -> str | None:
    place = hub_place(run.spec.model.weights or "")
    return choices.base_model or (place.repository if place else None)


def _front(run: VideoTrainingRun, choices: CardChoices) -> str:
    adapter = choices.layout == ADAPTER_LAYOUT
    fields: dict[str, Any] = {
        "license": choices.licence,
        "base_model": _base(run, choices),
        "base_model_relation": ("adapter" if adapter else "finetune") if _base(run, choices) else None,
        "library_name": "peft" if adapter else "diffusers" if choices.layout == "diffusers" else None,
        "pipeline_tag": "text-to-video",
        "tags": ["videotrain", *(["lora"] if adapter else [])],
    }
    told = {name: value for name, value in fields.items() if value is not None}
    return f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n"


def _what(run: VideoTrainingRun, choices: CardChoices) -> str:
    kind = "A LoRA adapter" if choices.layout == ADAPTER_LAYOUT else "A video generation model"
    if _base(run, choices):
        begun = f" of `{_base(run, choices)}`"
    else:
        begun = (
            f" that was trained from `{run.spec.model.weights}`" if run.spec.model.weights else " trained from scratch"
        )
    licence = choices.licence or "not stated; ask whoever published it"
    return f"{kind}{begun}, trained with videotrain {__version__}.\n\nLicence: {licence}."


def _training(run: VideoTrainingRun, summary: Json) -> Iterator[str]:
    yield f"Seed {run.spec.seed}; all random numbers and the order of samples follow from it."
    yield ""
    done = {stage["name"]: stage for stage in summary.get("stages", [])}
    yield "| stage | task | steps | learning rate | loss, last tenth |"
    yield "|---|---|---:|---|---:|"
    for stage in run.spec.stages:
        rates, steps = _rates(stage), stage.total_steps
        loss = done.get(stage.name, {}).get("last_tenth_loss")
        shown = "" if loss is None else f"{loss:.4g}"
        yield f"| {stage.name} | {stage.task} | {'' if steps is None else steps} | {rates} | {shown} |"
    for stage in run.spec.stages:
        if stage.train:
            yield ""
            yield f"`{stage.name}`: {'; '.join(_of_train(stage.train))}."


def _rates(stage: Stage) -> str:
    task = stage.train or stage.autoencoder
    return ", ".join(f"{piece.value:g}" for piece in task.optimizer.learning_rate) if task else ""


def _of_train(task: TrainTask) -> Iterator[str]:
    for row in task.buckets:
        frames = f"{row.min_frames} to {row.frames}" if row.min_frames else f"{row.frames}"
        samples = row.batch_size * task.parallel.micro_batches_of(row)
        yield f"{row.resolution}, {frames} frames, {samples} samples a step"
    yield f"conditioning {', '.join(task.conditioning.kinds)}"
    yield f"precision {task.precision}"
    if task.lora is not None:
        yield f"LoRA of rank {task.lora.rank} on {', '.join(task.lora.targets)}"


def _data(folder: Path) -> Iterator[str]:
    manifests, drops = _document(folder, DATA), _document(folder, "drop-report.json")
    for kind, table in manifests.items():
        digest = f"SHA-256 `{table['sha256']}`" if "sha256" in table else f"entity tag `{table['etag']}`"
        yield f"- Table of {kind}: {table['bytes']} bytes, {digest}"
    if drops:
        yield f"- {drops['videos']} videos gave {drops['clips']} clips; dropped:"
        yield from (f"  - {number} {reason}" for reason, number in sorted(drops.get("counts", {}).items()))
    if not manifests and not drops:
        yield "Not told by the run."


def _cost(bill: Json) -> Iterator[str]:
    if not bill:
        yield "Not told by the run."
        return
    buckets: Mapping[str, int] = bill["gpuMicrosecondsByBucket"]
    hours = sum(buckets.values()) / 3.6e9
    estimated = ", estimated" if bill.get("estimated") else ""
    yield f"{bill['total']} {bill['currency']}{estimated} for {hours:.4g} GPU-hours held."
    yield ""
    yield "| stage | cost |"
    yield "|---|---:|"
    for stage in bill["stages"]:
        yield f"| {stage['name']} | {stage['totalMicros'] / 1e6:.2f} {bill['currency']} |"


def _versions(summary: Json) -> Iterator[str]:
    found = summary.get("versions") or {"videotrain": __version__}
    yield ", ".join(f"{name} {version}" for name, version in found.items())
    order = summary.get("samples", {}).get("order_sha256")
    if order:
        yield f"\nOrder of the samples: SHA-256 `{order}`."
