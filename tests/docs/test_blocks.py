"""Every block of code in the pages says what it is, and its commands, manifests and programs work."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import importlib.util
import io
import re
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.doc_blocks import ROOT, Block, blocks, commands

from videotrain import cli
from videotrain.strict_yaml import parse_documents
from videotrain.torchx import components
from videotrain_api.crd.definition import root_schema
from videotrain_api.generate.chart_values import ChartValues, values_schema
from videotrain_api.render.defaults import parse_defaults
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import API_VERSION, KIND
from videotrain_trainer import cli as trainer_cli

LANGUAGES = {"sh", "yaml", "json", "python", "text"}
"""`text` is what is printed or only outlined; nothing looks into it."""
EXECUTED = {"plan", "check", "render"}
"""Commands of `videotrain` that are run where the files that they name are there: they change nothing."""
VERBS = {"annotate", "apply", "cp", "create", "delete", "describe", "edit", "exec", "get", "logs", "patch",
         "port-forward", "rollout", "scale", "top", "wait"}  # fmt: skip
KINDS = {"vtr", "videotrainingruns", "vtb", "pod", "pods", "node", "nodes", "crd", "workload", "events", "deployment"}

VALUES = {info.alias for info in ChartValues.model_fields.values()} - {"image", "resources"}
"""Values of the chart that are told from fields of a run by their names."""


def ids(block: Block) -> str:
    return str(block)


def test_every_block_says_what_it_is() -> None:
    assert [f"{block}: {block.language!r}" for block in blocks() if block.language not in LANGUAGES] == []


def parsed(parser: Any, words: list[str]) -> Any:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser.parse_known_args(words)
        except SystemExit as end:
            if end.code != 0:
                raise AssertionError(errors.getvalue()) from end
            return argparse.Namespace(), []


def videotrain(words: list[str]) -> None:
    options, further = parsed(cli.build_parser(), words)
    if further:
        assert getattr(options, "passes_flags_on", False), f"unrecognized arguments: {further}"
        trainer([words[0], "--output", "folder", *further])  # which the command gives if the user does not
    files = [word for word in words if word.endswith(".yaml")]
    if words[0] in EXECUTED and files and all((ROOT / file).is_file() for file in files):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(words) == 0
        assert out.getvalue()


def trainer(words: list[str]) -> None:
    assert parsed(trainer_cli._parser(), words)[1] == []


def tox(words: list[str]) -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini")
    if "-e" in words:
        for name in words[words.index("-e") + 1].split(","):
            assert f"testenv:{name}" in settings, f"tox -e {name}: there is no such environment"
    for word in words[words.index("--") + 1 :] if "--" in words else []:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word


def pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in (each for each in words[1:] if each.startswith("./")):
        folder, _, extras = word.rstrip("]").partition("[")
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        assert set(filter(None, extras.split(","))) <= set(project.get("optional-dependencies", {})), word


def python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words[1]
        return
    script = ROOT / words[0]
    assert script.is_file(), f"{words[0]} is not there"
    sources = "".join(path.read_text() for path in [script, *script.parent.glob("*.py"), *script.parent.glob("*/*.py")])
    missing = [word for word in words[1:] if word.startswith("--") and f'"{word.partition("=")[0]}"' not in sources]
    assert not missing, f"{words[0]} knows no {missing}"


def kubectl(words: list[str]) -> None:
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest = rest[2:]
    assert rest[0] in VERBS, f"kubectl {rest[0]}"
    for flag, file in pairwise(rest):
        if flag in ("-f", "-k"):
            assert file in ("-", "run.yaml") or (ROOT / file).exists(), file
    if rest[0] in ("annotate", "delete", "describe", "edit", "get", "patch", "wait"):
        assert rest[1].partition("/")[0] in KINDS, f"kind {rest[1]}"


def helm(words: list[str]) -> None:
    assert words[0] in ("install", "upgrade", "uninstall", "template", "test", "package", "push", "pull", "registry")
    if words[0] in ("install", "upgrade"):
        assert any((ROOT / word / "Chart.yaml").is_file() for word in words[1:]), "a chart of this repository"


def torchx(words: list[str]) -> None:
    assert words[0] in ("run", "status", "log", "list", "cancel", "delete", "runopts", "builtins"), words[0]
    names = [word for word in words if word.startswith("vtr.")]
    assert all(hasattr(components, name.removeprefix("vtr.")) for name in names), names
    if words[0] == "run" and names:
        code = getattr(components, names[0].removeprefix("vtr.")).__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [word.removeprefix("--") for word in words[words.index(names[0]) :] if word.startswith("--")]
        assert set(given) <= set(known), f"{names[0]}: {sorted(set(given) - set(known))}"


def nothing(_: list[str]) -> None:
    """Programs of others, whose words are theirs."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "videotrain": videotrain,
    "videotrain-trainer": trainer,
    "tox": tox,
    "uvx": lambda words: tox(words[1:]) if words[0] == "tox" else None,
    "pip": pip,
    "python": python,
    "python3": python,
    "kubectl": kubectl,
    "helm": helm,
    "torchx": torchx,
    **dict.fromkeys(
        (".", "aws", "cd", "chmod", "cp", "curl", "export", "grep", "hf", "ls", "mkdir", "rm", "tail", "umask"), nothing
    ),
}


@pytest.mark.parametrize("block", blocks("sh"), ids=ids)
def test_commands_are_ones_that_work(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        program = Path(words[0]).name if words[0].startswith(".tox/") else words[0]
        assert program in PROGRAMS, f"{block}: nobody here knows the program {words[0]}"
        try:
            PROGRAMS[program](words[1:])
        except AssertionError as error:
            raise AssertionError(f"{block}: {' '.join(words)}: {error}") from error


def without_required(schema: Any) -> Any:
    """A schema for a part: unknown fields and wrong values are refused, and what is left out is not missed."""
    if isinstance(schema, list):
        return [without_required(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: without_required(value) for key, value in schema.items() if key != "required" or key == "properties"}
    if "properties" in schema and "additionalProperties" not in schema:
        kept["additionalProperties"] = False
    return {key: value for key, value in kept.items() if not key.startswith("x-kubernetes")}


def part_schemas() -> dict[str, list[Any]]:
    """Schemas of the spec and of everything below it, by the name of the field."""
    found: dict[str, list[Any]] = {}

    def walk(name: str, schema: Any) -> None:
        found.setdefault(name, []).append(without_required(schema))
        inner = schema.get("items", schema)
        for key, below in inner.get("properties", {}).items():
            walk(key, below)

    walk("spec", root_schema()["properties"]["spec"])
    return found


def own_kinds() -> dict[str, Any]:
    """Schemas of the kinds of this project, with what every object has."""
    found = {}
    for path in (ROOT / "manifests/crds").glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        found[spec["names"]["kind"]] = spec["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def first_error(schema: Any, value: Any) -> str | None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft4Validator(schema).iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


@pytest.mark.parametrize("block", blocks("yaml"), ids=ids)
def test_manifests_and_parts_of_them_are_accepted(block: Block) -> None:
    schemas = part_schemas()
    for document in parse_documents(block.text):
        if isinstance(document, list):
            document = {"stages": document}
        if document.get("kind") == KIND:
            parse_run(document)
        elif document.get("apiVersion") == API_VERSION:
            error = first_error(own_kinds()[document["kind"]], document)
            assert error is None, f"{block}: {error}"
        elif set(document) <= VALUES:
            jsonschema.validate(document, values_schema())
            parse_defaults(document.get("runDefaults", {}))
        elif "kind" in document:
            assert document["apiVersion"], f"{block}: an object of Kubernetes, whose fields are its own"
        else:
            for name, value in document.items():
                assert name in schemas, f"{block}: no field of a run is called {name}"
                problems = []
                for schema in schemas[name]:
                    error = first_error(schema, value)
                    if error is None:
                        break
                    problems.append(error)
                else:
                    raise AssertionError(f"{block}: {name}: {problems}")


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_programs_name_what_exists(block: Block) -> None:
    """Those of the Python reference are run by tests/trainer/models/test_python_reference.py."""
    compile(block.text, str(block), "exec")
    for module, names in re.findall(r"^from (videotrain[\w.]*) import (.+)$", block.text, re.MULTILINE):
        loaded = importlib.import_module(module)
        missing = [name for name in re.split(r",\s*", names) if not hasattr(loaded, name.strip())]
        assert [name for name in missing if not importlib.util.find_spec(f"{module}.{name}")] == []


def test_a_command_that_is_not_there_fails() -> None:
    for words in (["videotrain", "plam", "x.yaml"], ["tox", "-e", "nothing"], ["kubectl", "get", "vtrr"]):
        with pytest.raises(AssertionError):
            PROGRAMS[words[0]](words[1:])
    with pytest.raises(AssertionError, match="no field"):
        test_manifests_and_parts_of_them_are_accepted(Block(ROOT / "x.md", 1, "yaml", "stagez: []"))
    with pytest.raises(AssertionError, match="stages"):
        test_manifests_and_parts_of_them_are_accepted(Block(ROOT / "x.md", 1, "yaml", "stages: [{nam: x}]"))
