"""`videotrain check`: everything that is wrong with a run, before it costs anything."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from videotrain import __version__
from videotrain.commands.plan_memory import coding_rows, gigabytes, planned_rows
from videotrain.commands.plan_tables import new_table
from videotrain.errors import EXIT_USAGE, UsageError
from videotrain.manifest_file import ManifestFile, ManifestFileError, Source, load_run, read_manifest
from videotrain_api.checks import CHECKS, CheckName, Finding, wrong
from videotrain_api.references import references
from videotrain_api.render.defaults import NO_DEFAULTS, with_defaults
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.trainrun import TRAINER_IMAGE, VideoTrainingRun
from videotrain_api.rules.pod_security import PodPolicy
from videotrain_api.rules.warn import warnings
from videotrain_api.schema import Json, ManifestError, Problem
from videotrain_api.vocabulary import ExitCode

TRAINER_SECONDS = 1800
"""Longest time for the trainer's answers; listing a folder of millions of videos takes minutes."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_STYLES = {"ok": "green", "wrong": "bold red", "warning": "yellow", "open": "dim"}
_TAG = re.compile(r"(?P<name>[^@]*?)(:(?P<tag>[\w.-]+))?(@.*)?")

AskCluster = Callable[[VideoTrainingRun, ManifestFile], tuple[list[Finding], dict[str, str]]]
"""What a cluster says, and the credentials of the object store that it holds."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What the user asked for."""

    pod_policy: PodPolicy
    json: bool
    quick: bool
    """Ask the manifest alone."""
    cluster: AskCluster | None = None
    defaults: RunDefaults = NO_DEFAULTS
    """Of the cluster."""


def check_run(source: Path | Source, options: CheckOptions, documents: list[Json]) -> int:
    """Check a run and tell what was found: a table, or a document `{"file", "valid", "name", "problems", "findings"}`.

    Args:
        source: the run.
        options: what the user asked for.
        documents: gets the document, if `json` is on.

    Returns:
        Exit code: 0; 2 for a manifest that is refused; else the one with which the run would end (see ExitCode).

    Raises:
        ManifestError, ManifestFileError, UsageError: the manifest is refused or the cluster cannot be asked, and
            `json` is off.
    """
    try:
        run, file = load_run(source, options.pod_policy, options.defaults), read_manifest(source)
        findings = list(_findings(run, file, options))
    except (ManifestFileError, ManifestError, UsageError) as error:
        if not options.json:
            raise
        documents.append(refused(source, error))
        return EXIT_USAGE
    if options.json:
        told = [Problem(finding.path, finding.value, finding.message) for finding in wrong(findings)]
        documents.append(_document(source, run.metadata.name, told, findings))
    else:
        _print_table(source, run, findings)
    return _exit_code(wrong(findings))


def refused(source: Path | Source | None, error: Exception) -> Json:
    """The document of a run that could not be checked; None: of a command line."""
    problems = error.problems if isinstance(error, ManifestError) else [Problem("", None, str(error))]
    return _document(source, None, problems, [])


def write_documents(documents: Sequence[Json]) -> None:
    """Write the document of one run, or those of several as one array."""
    told = documents[0] if len(documents) == 1 else list(documents)
    sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n")


def _findings(run: VideoTrainingRun, file: ManifestFile, options: CheckOptions) -> Iterator[Finding]:
    yield Finding(check="manifest", path="spec", verdict="ok", message="can be accepted")
    for each in warnings(run):
        yield Finding(check="manifest", path=each.path, value=each.value, verdict="warning", message=each.message)
    yield from _memory(run)
    yield _version(with_defaults(run, options.defaults).spec.image or TRAINER_IMAGE)
    credentials = _credentials_in(file, run)
    if options.cluster is not None:
        asked, held = options.cluster(run, file)
        yield from asked
        credentials = held | credentials
    if options.quick:
        yield from _not_looked_at(run, "left out by --quick")
    elif not _has_trainer():
        yield from _not_looked_at(run, "needs the trainer: pip install ./trainer; the run's first pod looks, too")
    else:
        yield from _of_trainer(file, credentials, in_cluster=options.cluster is not None)


def _has_trainer() -> bool:
    try:
        return importlib.util.find_spec("videotrain_trainer") is not None
    except ModuleNotFoundError:  # how a finder refuses what it is not to find
        return False


def _memory(run: VideoTrainingRun) -> Iterator[Finding]:
    """What has room, since the manifest would be refused otherwise."""
    rooms = [(row.memory.path, row.memory.row, row.memory.total, row.memory.limit) for row in planned_rows(run, ())]
    rooms += [(memory.path, memory.row, memory.total, memory.limit) for _, memory in coding_rows(run)]
    for path, row, total, limit in rooms:
        told = f"{gigabytes(total)} of a GPU's {gigabytes(limit)} GB (modelled)"
        yield Finding(check="memory", path=path, value=row, verdict="ok", message=told)


def _version(image: str) -> Finding:
    found = _TAG.fullmatch(image)
    tag = found["tag"] if found else None
    if tag == __version__:
        return Finding(check="version", path="spec.image", value=image, verdict="ok", message="as this command")
    if tag and re.fullmatch(r"v?\d+\.\d+\.\d+.*", tag):
        told = f"this command knows trainer {__version__}; check with the command of the image's version, or change it"
        return Finding(check="version", path="spec.image", value=image, verdict="warning", message=told)
    told = f"its tag does not tell the trainer's version; this command knows {__version__}"
    return Finding(check="version", path="spec.image", value=image, verdict="open", message=told)


def _not_looked_at(run: VideoTrainingRun, why: str) -> Iterator[Finding]:
    for reference in references(run):
        yield Finding(check="location", path=reference.path, value=reference.uri, verdict="open", message=why)


def _of_trainer(file: ManifestFile, credentials: Mapping[str, str], *, in_cluster: bool) -> Iterator[Finding]:
    """What `videotrain-trainer check` finds, here: files of pods and a store that is yet to be made are left open."""
    command = [sys.executable, "-m", "videotrain_trainer.cli", "check", "-", "--json"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(file.run),
            capture_output=True,
            text=True,
            check=False,
            timeout=TRAINER_SECONDS,
            env={**os.environ, **credentials},
        )
    except subprocess.TimeoutExpired:
        yield _unanswered(f"it gave no answer within {TRAINER_SECONDS} s")
        return
    if done.returncode != 0:
        yield _unanswered(done.stderr.strip()[-2000:] or f"it ended with exit code {done.returncode}")
    nameless = not credentials and not any(os.environ.get(name) for name in (KEYS[0], "AWS_PROFILE"))
    for line in done.stdout.splitlines():
        try:
            finding = Finding.model_validate_json(line)
        except ValidationError:  # what a library of the trainer printed
            sys.stderr.write(f"{line}\n")
            continue
        yield _as_seen_from_here(finding, in_cluster=in_cluster, nameless=nameless)


def _unanswered(why: str) -> Finding:
    """Nothing can be said to be right then."""
    told = f"the trainer could not look: {why}"
    return Finding(check="location", path="spec", verdict="wrong", message=told, code=ExitCode.INTERNAL)


def _as_seen_from_here(finding: Finding, *, in_cluster: bool, nameless: bool) -> Finding:
    """What is wrong here may be right where the run will be."""
    why = ""
    if in_cluster and str(finding.value).startswith(("file://", "/", "package://")):
        why = "it lies in the pods, whose first one looks at it"
    elif in_cluster and finding.check == "packages":
        why = "of this machine; the run's first pod looks at its image"
    elif finding.code == ExitCode.PERMISSION and nameless and str(finding.value).startswith("s3://"):
        why = (
            "no credentials are here: put the Secret into the file, ask the cluster for it (--cluster), or set "
            f"{' and '.join(KEYS)}; `videotrain local` makes a store of its own"
        )
    if finding.verdict != "wrong" or not why:
        return finding
    return finding.model_copy(update={"verdict": "open", "message": f"{why} ({finding.message})", "code": None})


def _credentials_in(file: ManifestFile, run: VideoTrainingRun) -> dict[str, str]:
    """Keys of the object store in a Secret beside the run."""
    wanted = run.spec.storage.credentials_secret
    secret = next((one for one in file.secrets if one["metadata"]["name"] == wanted), None)
    return credentials_of(secret) if secret is not None else {}


def credentials_of(secret: Json) -> dict[str, str]:
    """Keys of an object store in a Secret, as the environment of a client has them.

    Raises:
        UsageError: one of them is no text.
    """
    found: dict[str, str] = {}
    for name, value in (secret.get("data") or {}).items():
        if name.startswith("AWS_"):
            try:
                found[name] = b64decode(value).decode()
            except ValueError:
                told = "is no base64 of a text; write it anew, or use stringData"
                raise UsageError(f"Secret {secret['metadata']['name']!r}: data[{name!r}] {told}") from None
    return found | {name: value for name, value in (secret.get("stringData") or {}).items() if name.startswith("AWS_")}


def _exit_code(problems: Sequence[Finding]) -> int:
    """Of the first problem; one that only a cluster sees refuses the run."""
    return next((int(finding.code or EXIT_USAGE) for finding in problems), 0)


def _document(
    source: Path | Source | None, name: str | None, problems: Sequence[Problem], findings: Sequence[Finding]
) -> Json:
    return {
        "file": None if source is None else str(source),
        "valid": not problems,
        "name": name,
        "problems": [{"path": each.path, "value": each.value, "message": each.message} for each in problems],
        "findings": [finding.to_wire() for finding in findings],
    }


def _print_table(source: Path | Source, run: VideoTrainingRun, findings: Sequence[Finding]) -> None:
    stages = ", ".join(f"{stage.name} ({stage.task})" for stage in run.spec.stages)
    problems = wrong(findings)
    verdict = f"would fail: {len(problems)} wrong" if problems else "can be accepted"
    sys.stdout.write(f"{source}: {run.metadata.name} {verdict}. Stages: {stages}\n")
    table = new_table("", ("check", "field", "value", "", "what was seen"), ())
    order = list(CHECKS)
    for finding in sorted(findings, key=lambda each: (each.verdict != "wrong", order.index(each.check))):
        style = _STYLES[finding.verdict]
        value = "" if finding.value is None else str(finding.value)
        table.add_row(finding.check, finding.path, value, f"[{style}]{finding.verdict}[/]", finding.message)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    _print_unasked(findings)


def _print_unasked(findings: Sequence[Finding]) -> None:
    """What nobody was asked."""
    asked: set[CheckName] = {finding.check for finding in findings}
    if not any(CHECKS[check].by == "cluster" for check in asked):
        names = ", ".join(name for name, check in CHECKS.items() if check.by == "cluster")
        sys.stdout.write(f"Not asked: {names}; --cluster asks the cluster of the kubeconfig.\n")
