"""Names in text are alive: modules in strings and settings, paths in settings and pages, code that a page mentions.

A renamed module is found by the type checker where it is imported, and by nobody where it is only named.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from videotrain_trainer.cli import COMMANDS
from videotrain_trainer.curation.sandbox import MODULE
from videotrain_trainer.worker.main import MODULES

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "videotrain_api": "api",
    "videotrain_operator": "operator",
    "videotrain_trainer": "trainer",
    "videotrain": "cli",
}
DOTTED = re.compile(r"(?<![\w./-])(videotrain(?:_api|_operator|_trainer)?(?:\.[A-Za-z_]\w*)+)(?::(\w+))?")
RUN_AS_MODULE = re.compile(r"-m[\"',\s]+(videotrain[\w.]*\w)")
THIS = "tests/unit/test_names.py"
GENERATED = ("docs/reference/api.md", "docs/reference/metrics.md", "docs/reference/chart-values.md")
NOT_OURS = {
    "videotrain.condition_bias",  # a key in the metadata of a weight file
    "videotrain.vt",  # a service and its namespace, in the chart's golden files
    "videotrain.videotrain",  # the same in the kustomize base
    "videotrain.absent",  # a module that a test expects to be missing
    *(f"{package}.unplaced" for package in (*DISTRIBUTIONS, "videotrain_trainer.networks")),  # planted by test_law
}
"""Dotted names that look like modules of ours."""
OTHERS_PATHS = {
    "docs/compare.md": ("manifests/base/rbac/role.yaml", "api/jobset/v1alpha2/jobset_types.go"),
}
"""Paths in the repositories of others, by the page that names them."""
OTHERS_NAMES = {
    "docs/compare.md": """TrainJob PyTorchJob RayJob HyperPodPyTorchJob ClusterTrainingRuntime managedBy dependsOn
        numNodes minReplicas maxReplicas ElasticJobSet elasticPolicy scalingTimeoutInSeconds RestartJob TrainJobStatus
        TrainerStatus InPlaceRestart ScalingConfig elastic_resize_monitor_interval_s org_pytorchjobs runPolicy""",
    "docs/critiques.md": "vmafmotion",
    "docs/decisions/0001-wire-names.md": "to_camel t2V",
    "docs/decisions/0002-two-layers-of-refusal.md": "isSorted indexOf ValidateCustomResourceDefinition",
    "docs/decisions/0611-tiles-of-the-autoencoders.md": "compat",
    "docs/decisions/0630-one-spelling-of-rate-and-motion.md": "compat",
    "docs/decisions/0635-even-frames.md": "compat",
    "docs/how-to/queues.md": "managedJobsNamespaceSelector waitForPodsReady recoveryTimeout",
}
"""Names of others, and options that were decided against, by the page that explains them."""


@functools.cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@functools.cache
def text_of(name: str) -> str:
    """Content of a tracked file; nothing of one that is no text."""
    try:
        return (ROOT / name).read_text()
    except UnicodeDecodeError:
        return ""


@functools.cache
def existing() -> frozenset[str]:
    """Tracked files, and the folders that hold them."""
    folders = {str(folder) for name in tracked() for folder in Path(name).parents}
    return frozenset(tracked()) | folders


@functools.cache
def modules() -> dict[str, str]:
    """Files by dotted name of module or package."""
    found = {}
    for package, folder in DISTRIBUTIONS.items():
        for name in tracked():
            if name.startswith(f"{folder}/{package}/") and name.endswith(".py"):
                dotted = name.removeprefix(f"{folder}/").removesuffix(".py").replace("/", ".")
                found[dotted.removesuffix(".__init__")] = name
    return found


@functools.cache
def defined_in(module: str) -> frozenset[str]:
    """Names at the top level of a module, imported ones included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text_of(modules()[module]))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return frozenset(names)


def is_alive(dotted: str, attribute: str | None) -> bool:
    """Whether a dotted name leads to a module, or to something that a module defines."""
    module, rest = dotted, [attribute] if attribute else []
    while module not in modules():
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    return not rest or rest[0] in defined_in(module)


def at(name: str, text: str, match: re.Match[str], what: str) -> str:
    return f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}"


@functools.cache
def helm_templates() -> frozenset[str]:
    """Names that the chart defines; they begin with the chart's name."""
    charts = "".join(text_of(name) for name in tracked() if name.startswith("charts/"))
    names = re.findall(r"define \"([\w.]+)\"", charts)
    return frozenset(names) | {name.rpartition(".")[0] for name in names}


def test_every_module_that_a_text_names_exists():
    dead = []
    for name in set(tracked()) - {THIS}:
        text = text_of(name)
        for match in DOTTED.finditer(text):
            known = match[1] in helm_templates() or match[1].startswith(("videotrain.dev", *NOT_OURS))
            if not known and not is_alive(match[1], match[2]):
                dead.append(at(name, text, match, match[0]))
    assert dead == []


def test_every_module_that_is_run_can_be_run():
    dead = []
    for name in tracked():
        text = text_of(name)
        for match in RUN_AS_MODULE.finditer(text):
            file = modules().get(f"{match[1]}.__main__") or modules().get(match[1])
            if file is None or ("__main__" not in file and '__name__ == "__main__"' not in text_of(file)):
                dead.append(at(name, text, match, match[1]))
    assert dead == []


def test_every_entry_point_is_a_function():
    for folder in DISTRIBUTIONS.values():
        text = text_of(f"{folder}/pyproject.toml")
        for module, function in re.findall(r'^[\w-]+ = "([\w.]+):(\w+)"', text, re.MULTILINE):
            assert function in defined_in(module), f"{folder}/pyproject.toml: {module}:{function}"


def test_tables_of_modules_name_modules():
    named = [MODULE, *MODULES.values()]
    named += [f"videotrain_trainer.commands.{command}" for command in COMMANDS]
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


def spelled_out(path: str) -> Iterator[str]:
    """`a/{b,c}.py` is two paths."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        yield path
        return
    for choice in braces[1].split(","):
        yield from spelled_out(path[: braces.start()] + choice + path[braces.end() :])


def leads_somewhere(path: str, page: str) -> bool:
    """Whether a path exists, from the root or from the page that names it; `*` stands for anything."""
    beside = str(Path(page).parent / path)
    if "*" in path:
        return any(fnmatch.fnmatch(name, path) for name in existing())
    begun = any(name.startswith(f"{path}-") for name in existing())  # docs/decisions/0611
    return path in existing() or beside in existing() or begun


def test_every_path_of_the_repository_that_a_text_names_exists():
    tops = sorted({name.partition("/")[0] for name in tracked() if "/" in name} - {"runs"})
    path_rule = re.compile(rf"(?<![\w./@:-])((?:{'|'.join(tops)})/[\w./{{}},*+-]*)(?![<$(%])")
    dead = []
    for name in tracked():
        if name.startswith(("tests/", "benchmarks/results/", "charts/videotrain/files/")):
            continue
        text = text_of(name)
        for match in path_rule.finditer(text):
            path = match[1].rstrip(".,/")
            if path in OTHERS_PATHS.get(name, ()) or re.search(r"[A-Z]{4}|vocabulary\.", path):
                continue  # DATE and NAME stand for others
            dead += [at(name, text, match, one) for one in spelled_out(path) if not leads_somewhere(one, name)]
    assert dead == []


@functools.cache
def words_of_the_code() -> frozenset[str]:
    """Every name in sources, settings, manifests and file names; camelCase fields as the API spells them too."""
    words: set[str] = set()
    for name in tracked():
        if not name.endswith(".md") and not name.startswith(("benchmarks/results/", "tests/fixtures/", THIS)):
            words.update(re.findall(r"[A-Za-z_]\w*", text_of(name)))
        words.update(re.findall(r"[A-Za-z_]\w*", name))
    return frozenset(words)


def snake_case(word: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: f"_{match[1].lower()}", word)


def code_in(page: str) -> Iterator[re.Match[str]]:
    """Inline code; blocks are examples, whose commands the tutorial's tests run."""
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text_of(page), flags=re.DOTALL)
    yield from re.finditer(r"`([^`\n]+)`", text)


def dead_names(page: str, code: str) -> list[str]:
    """Names in a piece of inline code that no source knows."""
    if re.fullmatch(r"[\w./-]+\.py", code):
        return [] if any(name.endswith(f"/{code}") or name == code for name in tracked()) else [code]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(.*\))?", code):
        return []
    known = words_of_the_code().union(OTHERS_NAMES.get(page, "").split())
    return [w for w in re.findall(r"[A-Za-z_]\w*", code.partition("(")[0]) if not {w, snake_case(w)} & known]


def test_every_name_of_code_that_a_page_mentions_is_known_to_the_code():
    dead = []
    for page in tracked():
        if page.endswith(".md") and page not in GENERATED:
            for match in code_in(page):
                dead += [at(page, match.string, match, name) for name in dead_names(page, match[1])]
    assert dead == []


def test_dead_names_are_seen():
    assert is_alive("videotrain_operator.planner.plan", "plan") and is_alive(
        "videotrain_api.schema.ApiModel.to_wire", None
    )
    assert not is_alive("videotrain_trainer.model.mmdit", None)
    assert not is_alive("videotrain_operator.manager.main", "run_forever")
    assert not leads_somewhere("trainer/videotrain_trainer/model", "CONTRIBUTING.md")
    assert dead_names("README.md", "Draft.is_in_bounds()") == ["is_in_bounds"]
    assert dead_names("README.md", "planner/judge.py") == ["planner/judge.py"]
    assert dead_names("README.md", "nodes.min") == [] == dead_names("README.md", "planner/draft.py")
