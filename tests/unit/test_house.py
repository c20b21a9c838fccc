"""The laws of the house that no other tool checks."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from videotrain.manifest_file import load_run

ROOT = Path(__file__).parents[2]
PACKAGES = ("api/videotrain_api", "operator/videotrain_operator", "trainer/videotrain_trainer", "cli/videotrain")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_the_operator_folder_cannot_shadow_the_standard_library():
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not list(ROOT.glob("operator.py"))
    assert not [path for path in (ROOT / "tests").rglob("operator") if path.is_dir()]
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_lock_holds_versions_and_no_addresses():
    lines = (ROOT / "lock.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.+!]+( ;.*)?", line)] == []


def test_the_readme_is_short_and_its_manifest_is_valid(tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "run.yaml").write_text(block)
        load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path):
    assert load_run(path).metadata.name


def test_there_are_examples():
    assert {path.name for path in EXAMPLES} >= {"demo.yaml", "tiny.yaml", "open-sora-2.yaml", "open-sora-2-dc-ae.yaml"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 700
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []


def test_links_in_the_documents_lead_somewhere():
    broken = []
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_every_reference_within_tox_leads_somewhere():
    tox = configparser.RawConfigParser()
    tox.read(ROOT / "tox.ini")
    references = re.findall(r"\{\[([^\]]+)\](\w+)\}", (ROOT / "tox.ini").read_text())
    assert references
    assert [f"{section}: {key}" for section, key in references if not tox.has_option(section, key)] == []


def test_every_tox_environment_of_the_contributing_guide_exists():
    environments = set(re.findall(r"^\[testenv:([a-z-]+)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE))
    named = set(re.findall(r"tox -e ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named - environments == set()


def test_no_conflict_of_a_merge_is_left():
    marks = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    texts = (path for path in tracked("*.md", "*.py", "*.toml", "*.ini", "*.yaml", "*.tpl", ".importlinter"))
    assert [str(path.relative_to(ROOT)) for path in texts if path.is_file() and marks.search(path.read_text())] == []


RETIRED = {
    r"doubt": "node trust (of nodes), warning or check (elsewhere)",
    r"evidence": "fault, proof, order check, or what was seen",
    r"bereav|bereft|homeless": "orphan, unschedulable",
    r"farewell|last.word": "the plan of a deletion, the final annotations",
    r"memento": "status backup",
    r"zygote|warm launcher": "fork server",
    r"studio|workshop": "sampling pipeline",
    r"weak.?point": "what the test shows",
    r"freeze.?percent|videotrain_frozen|frozen step": "node trust, hang; frozen is the accepted configuration",
    r"(?<!multi_)\btenants?\b": "hosted pod",
    r"thawed": "while no pod exists",
    r"\b_?strike\b": "end for a fault, inject a fault",
    r"slots_?per_?step|_slots?\b|\bslots?\b(?!=True)": "micro-batch",
}
"""Words that were given up, as patterns without case, and what is said in their place."""


def test_retired_words_stay_retired():
    found = []
    for path in tracked(
        ":!benchmarks/results", ":!tests/fixtures", ":!lock.txt", ":!images/*.lock", ":!tests/unit/test_house.py"
    ):
        if path.suffix in (".png", ".safetensors", ".mp4") or not path.is_file():
            continue
        text = path.read_text()
        for retired, instead in RETIRED.items():
            for match in re.finditer(retired, text, re.IGNORECASE):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}; say {instead}")
    assert found == []


PICKLING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
OBJECT_COLLECTIVE = re.compile(r"(all_gather|broadcast|gather|scatter|send|recv)_object(_list)?")
"""Of torch.distributed, and DeepSpeed's of the same names: whoever takes part runs code on the others."""
PICKLED_PROTOCOLS = ("torch.distributed.checkpoint", "torch.distributed.rpc", "multiprocessing.connection")


def pickles_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that write or read pickles, or let a library do it, and what stands there."""
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLING_MODULES]
                names += [alias.name for alias in node.names if alias.name.startswith(PICKLED_PROTOCOLS)]
            case ast.ImportFrom(module=str(module)):
                full = [f"{module}.{alias.name}" for alias in node.names]
                # The exception alone is what a caller of torch.load(weights_only=True) has to know.
                names = [
                    name
                    for name in full
                    if name.split(".")[0] in PICKLING_MODULES and name.split(".")[-1] != "UnpicklingError"
                ]
                names += [
                    name
                    for name in full
                    if name.startswith(PICKLED_PROTOCOLS) or OBJECT_COLLECTIVE.fullmatch(name.split(".")[-1])
                ]
            case ast.Attribute(attr=name) | ast.Name(id=name) if OBJECT_COLLECTIVE.fullmatch(name):
                names = [name]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="save")):
                names = ["torch.save"]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                weights_only = [word.value for word in keywords if word.arg == "weights_only"]
                if [getattr(value, "value", None) for value in weights_only] != [True]:
                    names = ["torch.load without weights_only=True"]
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                names = ["allow_pickle=True"]
        yield from ((getattr(node, "lineno", 0), name) for name in names)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as cp",
        "from marshal import load",
        "dist.all_gather_object(values, value)",
        "from torch.distributed import broadcast_object_list",
        "dist.send_object_list([1], 0)",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import rpc",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(state, path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_a_pickle_is_seen(line: str):
    assert list(pickles_in(ast.parse(line)))


def test_nothing_is_pickled():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}; ranks speak JSON (parallel/peers.py), files are safetensors"
        for path in SOURCES
        for line, what in pickles_in(ast.parse(path.read_text()))
    ]
    assert found == []


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LOOPING_CALLS = {"all", "any", "dict", "filter", "list", "map", "max", "min", "next", "set", "sorted", "sum", "tuple"}


def loops_in(function: ast.FunctionDef) -> bool:
    """Whether a function searches or counts by itself, in a statement or through a builtin."""
    return any(
        isinstance(node, LOOPS)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOPING_CALLS)
        for node in ast.walk(function)
    )


@pytest.mark.parametrize("room", ["planner", "accounting"])
def test_no_property_of_the_pure_rooms_hides_a_loop(room: str):
    """Nobody sees that `draft.sizes` in a loop over pods is a loop in a loop; `draft.sizes()` shows it."""
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / "operator/videotrain_operator" / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and "property" in {ast.unparse(decorator) for decorator in node.decorator_list}
        and loops_in(node)
    ]
    assert hidden == []
