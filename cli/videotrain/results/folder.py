"""A folder with what a run made: W/results/ of a local run, and what `videotrain fetch` brings from a cluster.

transformer.safetensors   of the last train stage that is complete      adapter/   the same of a stage with train.lora
autoencoder.safetensors   of the last autoencoder stage that is         models.json   sizes of all models, for drawing
manifest.yaml, bill.json, report.html, summary.json, drop-report.json, samples/   as far as there are any
data.json                 hashes of the tables of clips and samples that it was trained on
results.json              where each weight file comes from
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from pydantic import TypeAdapter, ValidationError

from videotrain.files import replace_file, replacing
from videotrain.report.workdir import ObjectMissingError, S3Objects
from videotrain.results.data_manifest import FILE as DATA
from videotrain.results.data_manifest import data_manifests
from videotrain_api.billing.document import RunBill, bill_text
from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.resolve import uses_transformer
from videotrain_api.resource.stages import Stage
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel, Json
from videotrain_api.storage import layout
from videotrain_api.storage.layout import BILL_FILE
from videotrain_api.vocabulary import API_VERSION, KIND

FOLDER: Final = "results"
"""Its name in a working directory."""
TRANSFORMER: Final = "transformer.safetensors"
AUTOENCODER: Final = "autoencoder.safetensors"
ADAPTER: Final = "adapter"
MODELS: Final = "models.json"
MANIFEST: Final = "manifest.yaml"
INDEX: Final = "results.json"
SPARE_BYTES: Final = 512 * 1024 * 1024
"""Free space that weights leave on the disk."""
ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
ADAPTER_OF_DIFFUSERS: Final = "pytorch_lora_weights.safetensors"
"""The adapter under diffusers' names, which only some models have."""


class Fetched(ApiModel):
    """A file of the folder that was in the object store."""

    file: str
    """Its name in the folder."""
    stage: str
    """Which made it."""
    uri: str
    """Where it was."""
    bytes: int
    etag: str
    """Of the object, so that it is fetched again only if it is another one."""


_INDEX: Final = TypeAdapter(list[Fetched])


@dataclass
class Results:
    """What was written."""

    folder: Path
    fetched: list[Fetched] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is not there, and why; for people."""

    def has(self, name: str) -> bool:
        """Whether a weight file is there."""
        return any(each.file == name for each in self.fetched)


def write_results(
    folder: Path, run: Json, manifest: Json, objects: S3Objects, bill: RunBill | None, files: Mapping[str, Path]
) -> Results:
    """Write the folder, or bring it up to date; what is there already is not fetched again.

    Args:
        folder: made if it is missing.
        run: the VideoTrainingRun with its status.
        manifest: what its user wrote.
        objects: its object store.
        bill: the whole one.
        files: further ones by their names in the folder, files or folders; they share their content with it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parsed = VideoTrainingRun.from_wire({name: value for name, value in run.items() if name != "status"})
    results = Results(folder)
    known = {each.file: each for each in read_index(folder)}
    status = read_status(run.get("status")).status
    final = list(_weights(parsed, status))
    for name, stage, uri in final:
        _fetch(results, known.get(name), Fetched(file=name, stage=stage, uri=uri, bytes=0, etag=""), objects)
    index = json.dumps([each.to_wire() for each in results.fetched], indent=2)
    replace_file(folder / INDEX, index + "\n")
    replace_file(folder / MODELS, json.dumps(_models(parsed, {name: uri for name, _, uri in final}), indent=2) + "\n")
    replace_file(folder / DATA, json.dumps(data_manifests(parsed, status, objects), indent=2) + "\n")
    replace_file(folder / MANIFEST, yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
    if bill is not None:
        replace_file(folder / BILL_FILE, bill_text(bill) + "\n")
    for name, path in files.items():
        _share(path, folder / name)
    return results


def read_index(folder: Path) -> list[Fetched]:
    """What was fetched into the folder; empty if nothing was, or nobody can tell."""
    try:
        return _INDEX.validate_json((folder / INDEX).read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def manifest_of(run: Json) -> Json:
    """The manifest with which a run could be created again: without what the API server and controllers add."""
    head = {name: run["metadata"][name] for name in ("name", "namespace", "labels") if run["metadata"].get(name)}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": head, "spec": run["spec"]}


def _weights(run: VideoTrainingRun, status: RunStatus) -> Iterator[tuple[str, str, str]]:
    """(name in the folder, stage, URI) of all weights that are final."""
    done = {stage.name for stage in status.stages if stage.state == "Succeeded"}
    complete = [stage for stage in run.spec.stages if stage.name in done]
    for name, task in ((TRANSFORMER, "train"), (AUTOENCODER, "autoencoder")):
        if last := _last(complete, task):
            yield name, last.name, layout.final_weights(_prefix(run, last))
    adapted = [stage for stage in complete if stage.train and stage.train.lora]
    if adapted:
        for name in (*ADAPTER_FILES, ADAPTER_OF_DIFFUSERS):
            uri = f"{layout.final_adapter(_prefix(run, adapted[-1]))}/{name}"
            yield f"{ADAPTER}/{name}", adapted[-1].name, uri


def _last(stages: list[Stage], task: str) -> Stage | None:
    return next((stage for stage in reversed(stages) if stage.task == task), None)


def _prefix(run: VideoTrainingRun, stage: Stage) -> str:
    return layout.stage_prefix(run.spec.storage.uri, run.metadata.name, stage.name)


def _fetch(results: Results, known: Fetched | None, wanted: Fetched, objects: S3Objects) -> None:
    path = results.folder / wanted.file
    try:
        size, etag = objects.head(wanted.uri)
    except ObjectMissingError as error:
        if not wanted.file.endswith(ADAPTER_OF_DIFFUSERS):
            results.notes.append(f"{wanted.file}: {error}")
        return
    found = wanted.model_copy(update={"bytes": size, "etag": etag})
    if found != known or not path.is_file() or path.stat().st_size != size:
        free = shutil.disk_usage(results.folder).free
        if free - size < SPARE_BYTES:
            results.notes.append(
                f"{wanted.file}: not copied, since it has {size / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free; "
                f"it stays at {wanted.uri}"
            )
            return
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            objects.download(wanted.uri, partial)
    results.fetched.append(found)


def _models(run: VideoTrainingRun, final: Mapping[str, str]) -> Json:
    """What `videotrain-trainer sample --config` reads; weights that the run trained are named where it stored them."""
    spec = run.spec
    model = complete_transformer(spec.model) if uses_transformer(run) else spec.model
    autoencoder = complete_autoencoder(spec.autoencoder)
    return {
        "model": model.to_wire() | ({"weights": final[TRANSFORMER]} if TRANSFORMER in final else {}),
        "autoencoder": autoencoder.to_wire() | ({"weights": final[AUTOENCODER]} if AUTOENCODER in final else {}),
        "textEncoder": spec.text_encoder.to_wire(),
        "storage": spec.storage.to_wire(),
    }


def _share(source: Path, target: Path) -> None:
    """Put a file or folder at another place, too, without its bytes being there twice where the disk can do that."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _share(path, target / path.name)
        return
    with replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a disk without links, or two disks
            shutil.copy2(source, partial)
