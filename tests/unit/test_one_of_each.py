"""What the project knows is written once: each test names a fact's home and fails where somebody writes it again."""

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from videotrain_api import vocabulary
from videotrain_api.cost import gpus
from videotrain_api.resource import mutability
from videotrain_api.resource.stages import TASKS, SampleTask
from videotrain_api.resource.trainrun import CAUSES
from videotrain_trainer.commands.sample import add_options

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "api": ROOT / "api/videotrain_api",
    "operator": ROOT / "operator/videotrain_operator",
    "trainer": ROOT / "trainer/videotrain_trainer",
    "cli": ROOT / "cli/videotrain",
}


@cache
def sources(*names: str) -> list[tuple[str, ast.Module]]:
    """Path below the root and syntax tree of every module of the named distributions, all if none is named."""
    paths = [path for name in names or PACKAGES for path in sorted(PACKAGES[name].rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths]


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Constants of the code; docstrings, and strings that stand alone as documentation, are none."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told)


@cache
def written() -> dict[object, list[str]]:
    """Paths of the modules that hold a text or number, by that, once per place."""
    found: dict[object, list[str]] = {}
    for path, tree in sources():
        for literal in literals(tree):
            found.setdefault(literal.value, []).append(path)
    return found


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Calls of functions with these names, with or without a module before them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in names:
                yield node


def listings(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Line and texts of every tuple, list and set that is written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = {item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)}
            yield node.lineno, texts


def imported(tree: ast.AST) -> set[str]:
    """Modules that a module imports, by their whole names."""
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def _names(tree: ast.AST, name: str) -> Iterator[ast.Name]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name)


def is_number(node: ast.AST | None) -> bool:
    """Whether that is a number that is written out."""
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def defaults_of(node: ast.AST, names: set[str], flags: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """Defaults of parameters and fields with these names, also in `Field(default=...)`, and of these flags."""
    if isinstance(node, ast.FunctionDef):
        arguments, defaults = node.args.args[::-1], node.args.defaults[::-1]
        pairs = [
            *zip(arguments, defaults, strict=False),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ]
        yield from ((argument.arg, value) for argument, value in pairs if argument.arg in names and value)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in names and node.value:
        yield node.target.id, node.value
        if isinstance(node.value, ast.Call):
            yield from ((node.target.id, word.value) for word in node.value.keywords if word.arg == "default")
    if (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value in flags
    ):
        yield from ((str(node.args[0].value), word.value) for word in node.keywords if word.arg == "default")


class TestSampling:
    """Home of the defaults: videotrain_api.resource.sampling. Home of the rules: videotrain_api.resource.references."""

    def test_no_default_of_sampling_is_a_number_of_its_own(self):
        names = {"steps", "sampling_steps", "fps", "motion_score", "motion", "text_guidance", "image_guidance"}
        flags = {f"--{name.replace('_', '-')}" for name in names} | {"--guidance", "--image-steps"}
        found = []
        for path, tree in sources("trainer", "api"):
            defaults = [pair for node in ast.walk(tree) for pair in defaults_of(node, names, flags)]
            found += [f"{path}:{value.lineno} {name}" for name, value in defaults if is_number(value)]
        assert found == []

    def test_the_command_draws_as_a_stage_does(self):
        parser = argparse.ArgumentParser()
        add_options(parser)
        flags = parser.parse_args(["--output", "x"])
        task = SampleTask(resolution="256px", frames=1)
        # The scale for the text is another one for distilled models: the command asks the model.
        assert (flags.steps, flags.image_guidance, flags.fps, flags.motion) == (
            task.sampling_steps,
            task.image_guidance,
            task.fps,
            task.motion_score,
        )

    def test_only_the_rules_tell_the_kinds_that_take_references_apart(self):
        home = "api/videotrain_api/resource/references.py"
        prefixes = [
            f"{path}:{call.lineno}"
            for path, tree in sources()
            for call in calls(tree, "startswith")
            if path != home
            for argument in call.args
            if isinstance(argument, ast.Constant) and argument.value in ("i2v", "i2v_loop")
        ]
        # The sampler's image guidance rises over the frames for pictures only: that is how it draws, not what fits.
        assert [place.rsplit(":", 1)[0] for place in prefixes] == ["trainer/videotrain_trainer/diffusion/sampler.py"]

    @pytest.mark.parametrize("words", ["decodes to 1 + ", "no other kind takes one", "takes no reference"])
    def test_a_refusal_is_worded_once(self, words):
        found = {path for text, paths in written().items() if words in str(text) for path in paths}
        assert len(found) <= 1, found


class TestResource:
    """Homes in api.resource: mutability (what may change), stages (kinds of task), trainrun (node bounds)."""

    @pytest.mark.parametrize(
        ("home", "names"),
        [
            ("mutability", mutability.LIVE),
            ("mutability", mutability.WHILE_NO_PODS),
            ("mutability", mutability.FIXED_POOL),
            ("mutability", mutability.LIVE_FAILURE_POLICY),
            ("mutability", mutability.FIXED_FAILURE_POLICY),
            ("stages", TASKS),
        ],
    )
    def test_a_list_of_fields_is_written_once(self, home, names):
        known = {*names, *(re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name) for name in names)}
        found = [
            path for path, tree in sources() for _, texts in listings(tree) if len(texts & known) > len(names) // 2 > 0
        ]
        assert found == [f"api/videotrain_api/resource/{home}.py"]

    def test_every_list_of_what_may_change_is_read_by_the_product(self):
        lists = {name for name in vars(mutability) if name.isupper()}
        names = [node for _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Name)]
        assert lists - {node.id for node in names if isinstance(node.ctx, ast.Load)} == set()

    def test_only_one_place_decides_whose_node_bounds_count(self):
        found = []
        for path, tree in sources():
            choices = [node for node in ast.walk(tree) if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)]
            ends = [node.values[-1] for node in choices]
            found += [path for end in ends if isinstance(end, ast.Attribute) and end.attr == "nodes"]
        assert found == ["api/videotrain_api/resource/trainrun.py"]

    def test_only_one_place_lists_the_node_counts_of_bounds(self):
        found = [
            path
            for path, tree in sources()
            for call in calls(tree, "range")
            if any(getattr(node, "attr", None) == "min" for node in ast.walk(call))
        ]
        assert found == ["api/videotrain_api/resource/stages.py"]


def test_only_the_api_knows_what_gpus_can_do():
    """Home: videotrain_api.cost.gpus."""
    users = [path for path, tree in sources("operator", "trainer", "cli") if "PEAK_FLOPS" in ast.dump(tree)]
    assert (users, written()[gpus.PEAK_FLOPS]) == ([], ["api/videotrain_api/cost/gpus.py"])


class TestNames:
    """Home of the names on the wire: videotrain_api.vocabulary."""

    # A Literal cannot be made from a constant, and a CRD's schema is built from it.
    LITERALS = (
        "api/videotrain_api/vocabulary.py",
        "api/videotrain_api/resource/trainrun.py",
        "api/videotrain_api/resource/training_budgets.py",
    )

    @pytest.mark.parametrize("domain", [vocabulary.GROUP, vocabulary.KUEUE])
    def test_a_label_or_annotation_is_spelt_in_the_vocabulary_only(self, domain):
        spelt = re.compile(rf"^{re.escape(domain)}/[-a-z0-9]+$")
        found = {path for text, paths in written().items() if spelt.match(str(text)) for path in paths}
        assert found - set(self.LITERALS) == set()

    @pytest.mark.parametrize(
        "name",
        [name for name in vars(vocabulary) if name.startswith(("ENV_", "FILE_", "DIR_", "ANNOTATION_", "LABEL_"))]
        + ["FROZEN_SPEC_KEY", "LEDGER_KEY", "KUEUE", "PLURAL"],
    )
    def test_a_name_of_the_vocabulary_is_spelt_once(self, name):
        assert written()[getattr(vocabulary, name)] == ["api/videotrain_api/vocabulary.py"]

    def test_the_name_of_the_ledger_is_put_together_once(self):
        assert written()["-ledger"] == ["api/videotrain_api/render/names.py"]


class TestWorkers:
    """Homes: worker.stage_reporter (records of every task), parallel.peers (collectives)."""

    @pytest.mark.parametrize("record", ["StartedRecord", "StepRecord", "CheckpointRecord"])
    def test_a_record_that_every_task_writes_is_built_once(self, record):
        found = [path for path, tree in sources("trainer") for _ in calls(tree, record)]
        assert found == ["trainer/videotrain_trainer/worker/stage_reporter.py"]

    def test_collectives_stand_together(self):
        words = re.compile(r"^(broadcast|all_gather|all_reduce|all_to_all|gather|reduce|scatter|barrier)(_\w+)?$")
        found = set()
        for path, tree in sources("trainer"):
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and words.match(node.attr)]
            found |= {path for node in nodes if getattr(node.value, "id", None) == "dist"}
        # Engines and shared sequences have their own; the drain's flag is agreed upon before there are peers, in a room
        # below theirs.
        assert found == {
            "trainer/videotrain_trainer/parallel/context.py",
            "trainer/videotrain_trainer/parallel/fsdp.py",
            "trainer/videotrain_trainer/parallel/peers.py",
            "trainer/videotrain_trainer/worker/drain.py",
        }


class TestCommand:
    """Home of locks on directories: videotrain.locks."""

    def test_one_module_locks_directories(self):
        found = [path for path, tree in sources("cli") if "fcntl" in imported(tree)]
        assert found == ["cli/videotrain/locks.py"]


def test_files_are_replaced_in_one_way():
    """Homes: videotrain.files and videotrain_trainer.files."""
    found = set()
    for path, tree in sources():
        moves = [call for call in calls(tree, "replace", "rename") if isinstance(call.func, ast.Attribute)]
        # Of texts, times and dataclasses `replace` takes other arguments.
        found |= {path for call in moves if len(call.args) == 1 and not call.keywords}
    assert found == {
        "cli/videotrain/files.py",
        "trainer/videotrain_trainer/files.py",
        "cli/videotrain/controlplane/build.py",  # moves a program that was built, and writes nothing
        "cli/videotrain/controlplane/controllers.py",  # the same
        "cli/videotrain/controlplane/tools.py",  # moves a program that was fetched
        "cli/videotrain/processes/supervisor.py",  # has the standard library only
    }


class TestPlumbing:
    """Homes: videotrain_api.schema (Json), videotrain_api.times (moments as texts)."""

    def test_an_object_of_json_has_one_name(self):
        found = []
        for path, tree in sources():
            aliases = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
            found += [path for node in aliases if ast.unparse(node) == "Json = dict[str, Any]"]
        assert found == ["api/videotrain_api/schema.py"]

    def test_one_function_writes_moments(self):
        found = {path for text, paths in written().items() if text == "+00:00" for path in paths}
        formats = {path for text, paths in written().items() if "%dT%H" in str(text) for path in paths}
        assert found == {"api/videotrain_api/times.py"}
        assert formats == {"cli/videotrain/processes/supervisor.py"}, "it has the standard library only"

    def test_one_module_lists_again_when_history_is_lost(self):
        """Home: videotrain_operator.kube.informer."""
        assert written()[410] == ["operator/videotrain_operator/kube/informer.py"]

    def test_one_module_limits_the_connections_of_the_operator_s_servers(self):
        """Home: videotrain_operator.http_server; metrics and the webhook are served through it."""
        # The process nodes' kubelets answer on loopback alone, and to nobody but the API server.
        found = [path for path, tree in sources("operator") if list(calls(tree, "AppRunner"))]
        assert found == ["operator/videotrain_operator/http_server.py"]

    def test_the_causes_of_an_end_are_listed_once(self):
        known = set(CAUSES)
        found = [path for path, tree in sources() for _, texts in listings(tree) if texts == known]
        assert found == ["api/videotrain_api/resource/trainrun.py"]

    def test_one_function_tells_the_seconds_of_a_step(self):
        """Home: GenerationProgress.seconds_per_step."""
        found = set()
        for path, tree in sources():
            spans = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)]
            ends = [(getattr(span.left, "attr", None), getattr(span.right, "attr", None)) for span in spans]
            found |= {path for end in ends if end == ("last_step_at", "first_step_at")}
        assert found == {"api/videotrain_api/records.py"}

    def test_the_operator_s_pod_root_is_read_in_one_place(self):
        reads = [path for path, tree in sources("operator") for _ in _names(tree, "ENV_POD_ROOT")]
        assert set(reads) == {"operator/videotrain_operator/kube/client.py"}
