"""What goes into an image is hashed, licensed and written down; what was not looked up is never called safe."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "images"
LOCKS = ("build", "operator", "trainer", "trainer-flash4")
DIGEST = "sha256:" + "ab" * 32


def script(name: str):
    """A script of images/ as a module."""
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path: Path) -> set[str]:
    return {line.split()[0] for line in path.read_text().splitlines() if "==" in line}


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_an_image_has_hashes_and_no_address(name):
    text = (IMAGES / f"{name}.lock").read_text()
    entry = r"[a-z0-9._-]+==[a-z0-9.+!]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({entry})+", text)


@pytest.mark.parametrize("name", LOCKS[1:])
def test_an_image_gets_the_versions_of_the_lock(name):
    assert pins(IMAGES / f"{name}.lock") <= pins(ROOT / "lock.txt")


@pytest.mark.parametrize("part", ["operator", "trainer"])
@pytest.mark.parametrize(
    ("release", "digest", "code"),
    [("", "", 0), ("", f"@{DIGEST}", 0), ("1", f"@{DIGEST}", 0), ("1", "", 1), ("1", "latest", 1)],
)
def test_a_release_needs_the_digest_of_its_base(part, release, digest, code):
    dockerfile = (IMAGES / f"{part}.Dockerfile").read_text()
    command = re.search(r"^RUN (case .*?esac)$", dockerfile, re.MULTILINE | re.DOTALL)[1]
    done = subprocess.run(["sh", "-c", command], env={"RELEASE": release, "BASE_DIGEST": digest}, check=False)
    assert done.returncode == code


@pytest.mark.parametrize("part", ["operator", "trainer"])
def test_nothing_of_an_index_is_installed_without_a_hash(part):
    dockerfile = (IMAGES / f"{part}.Dockerfile").read_text().replace("\\\n", " ")
    installs = [line for line in re.split(r"\n|&&", dockerfile) if "bin/pip" in line]
    assert len(installs) >= 3
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["operator"], "--base-digest"),
        (["operator", "--base-digest", "sha256:12"], "is no digest"),
        (["trainer", "--base-digest", DIGEST], "--apt-snapshot"),
        (["operator", "--base-digest", DIGEST, "--extra", "flash4"], "--extra"),
    ],
)
def test_a_release_that_names_too_little_is_refused(options, problem, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        script("build").main([*options, "--tag", "x", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_provenance_of_the_trainer_with_an_extra_names_its_lock():
    arguments = {"RELEASE": "1", "BASE_DIGEST": f"@{DIGEST}", "EXTRA": "flash4"}
    made = script("build").provenance("trainer", "t:1", DIGEST, "c0ffee", arguments, datetime(2026, 11, 29, tzinfo=UTC))
    names = {item.get("name") for item in made["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {"images/trainer.Dockerfile", "images/trainer-flash4.lock"} <= names and "images/trainer.lock" not in names


def test_provenance_names_image_source_base_and_locks():
    arguments = {"RELEASE": "1", "BASE_DIGEST": f"@{DIGEST}"}
    made = script("build").provenance(
        "operator", "r/op:1", DIGEST, "c0ffee", arguments, datetime(2026, 11, 29, tzinfo=UTC)
    )
    assert made["subject"] == [{"name": "r/op:1", "digest": {"sha256": "ab" * 32}}]
    definition = made["predicate"]["buildDefinition"]
    materials = {item.get("name") or item["uri"]: item["digest"] for item in definition["resolvedDependencies"]}
    assert materials["source"] == {"gitCommit": "c0ffee"}
    assert materials["docker://docker.io/library/python:3.11-slim-bookworm"] == {"sha256": "ab" * 32}
    assert {"images/operator.Dockerfile", "images/operator.lock", "images/build.lock"} <= materials.keys()
    assert made["predicate"]["runDetails"]["metadata"]["startedOn"] == "2026-11-29T00:00:00Z"


AUDITORS = {
    "all looked up": ("print(json.dumps({'dependencies': rows}))", 0, "0 known vulnerabilities"),
    "one vulnerable": (
        "rows[0]['vulns'] = [{'id': 'CVE-1', 'fix_versions': ['9']}]; print(json.dumps({'dependencies': rows}))",
        1,
        "CVE-1, fixed in 9",
    ),
    "all skipped": (
        "print(json.dumps({'dependencies': [{'name': r['name'], 'skip_reason': 'not found'} for r in rows]}))",
        2,
        "NOT CHECKED, 38 of 38 pins were not looked up: not found",
    ),
    "one left out": ("print(json.dumps({'dependencies': rows[1:]}))", 2, "NOT CHECKED, 1 of"),
    "no connection": ("print('no connection', file=sys.stderr); sys.exit(1)", 2, "not looked up: no connection"),
}


@pytest.mark.parametrize("kind", AUDITORS)
def test_only_pins_that_were_all_looked_up_pass(kind, tmp_path, capsys):
    end, code, said = AUDITORS[kind]
    said = said.replace("38", str(len(pins(IMAGES / "build.lock"))))
    auditor = tmp_path / "auditor.py"
    auditor.write_text(
        "import json, sys\n"
        "lock = open(sys.argv[sys.argv.index('--requirement') + 1])\n"
        "pins = [line.split()[0].split('==') for line in lock if '==' in line]\n"
        "rows = [{'name': name, 'version': version, 'vulns': []} for name, version in pins]\n" + end + "\n"
    )
    assert script("audit").main([sys.executable, str(auditor)]) == code
    assert said in capsys.readouterr().out


def test_every_pin_has_its_licence_on_the_page():
    page = script("licences")
    rows = {name: (version, text) for name, version, text, _ in page.ROW.findall(page.PAGE.read_text())}
    assert {name: version for name, (version, _) in rows.items()} == page.pins(ROOT / "lock.txt")
    shipped = page.pins(IMAGES / "operator.lock") | page.pins(IMAGES / "trainer-flash4.lock")
    assert [name for name in shipped if rows[name][1] == page.UNKNOWN] == []
