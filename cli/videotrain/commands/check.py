"""`videotrain check`: whether a manifest can be accepted, and everything that is wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from videotrain.manifest_file import ManifestFileError, Source, load_run
from videotrain_api.rules.pod_security import PodPolicy
from videotrain_api.schema import ManifestError, Problem

EXIT_REFUSED = 2


def check_manifest(source: Path | Source, pod_policy: PodPolicy, *, as_json: bool) -> int:
    """Check a manifest by the rules of the admission webhook and the operator.

    Args:
        source: manifest.
        pod_policy: what its worker pods have to keep to.
        as_json: print `{"file", "valid", "name", "problems": [{"path", "value", "message"}]}`, also about a manifest
            that is refused, instead of raising.

    Returns:
        Exit code: 0, or 2 for a manifest that is refused.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused, and `as_json` is off.
    """
    if not as_json:
        run = load_run(source, pod_policy)
        stages = ", ".join(f"{stage.name} ({stage.task})" for stage in run.spec.stages)
        sys.stdout.write(f"{source}: {run.metadata.name} can be accepted. Stages: {stages}\n")
        return 0
    name, problems = _problems_in(source, pod_policy)
    document = {"file": str(source), "valid": not problems, "name": name, "problems": problems}
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    return EXIT_REFUSED if problems else 0


def _problems_in(source: Path | Source, pod_policy: PodPolicy) -> tuple[str | None, list[dict[str, Any]]]:
    try:
        return load_run(source, pod_policy).metadata.name, []
    except ManifestFileError as error:
        return None, [_document(Problem("", None, str(error)))]
    except ManifestError as error:
        return None, [_document(problem) for problem in error.problems]


def _document(problem: Problem) -> dict[str, Any]:
    return {"path": problem.path, "value": problem.value, "message": problem.message}
