"""`videotrain-trainer check`: what the store, the models and the data say of a run, before it costs anything."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from videotrain_trainer.errors import ConfigError

HELP = "look at every URI, weight file and data set of a run, without computing anything"
PATIENCE_SECONDS = 2.0
"""For which a request that is denied is asked again: a person waits."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Look at everything that a run reads: places and credentials, names and shapes of weights, data that are "
        "there, rows that some clip fits, packages. `videotrain check` calls this. Exit code 0, or the one that "
        "the run would end with."
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="manifest with one VideoTrainingRun, YAML or JSON; - is the standard input",
    )
    parser.add_argument("--json", action="store_true", help="findings as JSON lines")


def run(options: argparse.Namespace) -> int:
    """Check.

    Raises:
        ConfigError: the manifest cannot be read or is refused.
    """
    import yaml

    from videotrain_api.schema import ManifestError
    from videotrain_api.validation import parse_run
    from videotrain_trainer.preflight.inputs import InputCheck
    from videotrain_trainer.preflight.refusing import refuse
    from videotrain_trainer.storage import ObjectStore

    text = sys.stdin.read() if str(options.file) == "-" else options.file.read_text()
    try:
        manifest = parse_run(_read(text), fitting=False)
    except (yaml.YAMLError, ManifestError) as error:
        raise ConfigError(f"{options.file}: {error}") from error
    findings = []
    for finding in InputCheck(manifest, ObjectStore(manifest.spec.storage, PATIENCE_SECONDS)).findings():
        findings.append(finding)
        line = json.dumps(finding.to_wire()) if options.json else f"{finding.verdict:8} {finding.check:9} {finding}"
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if options.json:
        return 0
    refuse(findings)
    return 0


def _read(text: str) -> Any:
    import yaml

    try:
        return json.loads(text)
    except json.JSONDecodeError:  # YAML, which reads JSON's 5e-05 as a text
        return yaml.safe_load(text)
