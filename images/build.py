"""Build an image for release, and write down what it is made of and how.

    python images/build.py operator --tag REGISTRY/videotrain/operator:0.1.0 --base-digest sha256:... --out release

Writes `operator.sbom.cdx.json` (CycloneDX, of the Python packages in the image) and `operator.provenance.json` (an
in-toto statement with SLSA's provenance, to be signed by whoever releases).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD_TYPE = "https://github.com/containers/buildah"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main(arguments: list[str] | None = None) -> int:
    """Build, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("operator", "trainer"))
    parser.add_argument("--tag", required=True)
    parser.add_argument("--base-digest", required=True, type=_digest, help="of the base image, sha256:...")
    parser.add_argument("--apt-snapshot", default="", help="for the trainer: Ubuntu's archive as it was then")
    parser.add_argument("--extra", default="", choices=("", "flash4"), help="for the trainer: FlashAttention 4 as well")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    options = parser.parse_args(arguments)
    if options.part == "trainer" and not options.apt_snapshot:
        parser.error("--apt-snapshot: a release of the trainer names the state of Ubuntu's archive, 20261101T000000Z")
    if options.extra and options.part != "trainer":
        parser.error(f"--extra: the image of the {options.part} has none")
    if changed := _output("git", "status", "--porcelain"):
        parser.error(f"the working tree has changes; a release is built from a commit:\n{changed}")
    started = datetime.now(UTC)
    arguments_of_build = {"RELEASE": "1", "BASE_DIGEST": f"@{options.base_digest}"}
    if options.apt_snapshot:
        arguments_of_build["APT_SNAPSHOT"] = options.apt_snapshot
    if options.extra:
        arguments_of_build["EXTRA"] = options.extra
    _build(options.part, options.tag, arguments_of_build)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.part}.sbom.cdx.json").write_text(_sbom(options.tag))
    digest = _output("buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", options.tag)
    commit = _output("git", "rev-parse", "HEAD")
    document = provenance(options.part, options.tag, _digest(digest), commit, arguments_of_build, started)
    (options.out / f"{options.part}.provenance.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def provenance(
    part: str, name: str, digest: str, commit: str, arguments: dict[str, str], started: datetime
) -> dict[str, Any]:
    """The in-toto statement (v1) with SLSA's provenance (v1) of an image.

    Args:
        part: operator or trainer.
        name: the image's, with its tag.
        digest: of its manifest, `sha256:...`.
        commit: that it was built from.
        arguments: of the build.
        started: when it began.
    """
    dockerfile = (ROOT / "images" / f"{part}.Dockerfile").read_text()
    base = re.search(r"^ARG BASE_IMAGE=(\S+)", dockerfile, re.MULTILINE)
    assert base is not None, f"{part}.Dockerfile names no base"
    lock = f"{part}-{arguments['EXTRA']}.lock" if "EXTRA" in arguments else f"{part}.lock"
    files = [str(Path("images", name)) for name in (f"{part}.Dockerfile", lock, "build.lock")]
    materials: list[dict[str, Any]] = [{"name": "source", "digest": {"gitCommit": commit}}]
    materials.append({"uri": f"docker://{base[1]}", "digest": _parts(arguments["BASE_DIGEST"].removeprefix("@"))})
    for file in files:
        materials.append({"name": file, "digest": {"sha256": hashlib.sha256((ROOT / file).read_bytes()).hexdigest()}})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": _parts(digest)}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"dockerfile": files[0], "arguments": arguments},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE},
                "metadata": {"startedOn": f"{started:%Y-%m-%dT%H:%M:%SZ}"},
            },
        },
    }


def _parts(digest: str) -> dict[str, str]:
    kind, _, value = digest.partition(":")
    return {kind: value}


def _digest(text: str) -> str:
    if not DIGEST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no digest; sha256: and 64 hex digits are needed")
    return text


def _build(part: str, tag: str, arguments: dict[str, str]) -> None:
    dockerfile = str(Path("images", f"{part}.Dockerfile"))
    command = ["buildah", "build", "--file", dockerfile, "--ignorefile", f"{dockerfile}.dockerignore", "--tag", tag]
    command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    subprocess.run([*command, "."], check=True, cwd=ROOT)


def _sbom(tag: str) -> str:
    container = _output("buildah", "from", "--pull-never", tag)
    try:
        return _output("buildah", "run", container, "--", "cat", "/opt/videotrain/sbom.cdx.json")
    finally:
        _output("buildah", "rm", container)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
