"""`videotrain render`: the Kubernetes objects that the operator would create for a manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from videotrain.manifest_file import load_run
from videotrain_api.render.objects import render_objects
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.rules.pod_security import PodPolicy

LITERAL_FROM = 100
"""Strings from this length on, such as a frozen stage configuration, are written as blocks."""


class _ReadableDumper(yaml.SafeDumper):
    """Writes objects in their own key order and long strings as blocks, and never uses aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - signature of PyYAML
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value or len(value) >= LITERAL_FROM else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_ReadableDumper.add_representer(str, _string)


def print_objects(path: Path, pod_policy: PodPolicy, *, as_json: bool) -> int:
    """Print the objects of the first stage on an empty cluster.

    Args:
        path: manifest.
        pod_policy: what its worker pods have to keep to.
        as_json: a List as JSON instead of YAML documents.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
    """
    run = load_run(path, pod_policy)
    objects = render_objects(run)
    if as_json:
        document = {"apiVersion": "v1", "kind": "List", "items": objects}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return 0
    sys.stdout.write(_heading(run))
    for each in objects:
        sys.stdout.write("---\n" + yaml.dump(each, Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True))
    return 0


def _heading(run: VideoTrainingRun) -> str:
    first, *later = [(s.name, node_counts(node_bounds(run, s))[-1]) for s in run.spec.stages]
    lines = [f"# {run.metadata.name}: created for stage {first[0]}, up to {first[1]} worker pods, on an empty cluster."]
    lines += [f"# stage {name}: up to {nodes} worker pods." for name, nodes in later]
    lines.append(
        "# The network policy is that of the chart's defaults; the operator in a cluster names its own namespace."
    )
    return "\n".join([*lines, "# Labels with the run's uid are filled in once it exists.\n"])
