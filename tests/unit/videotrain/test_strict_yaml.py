"""What a manifest may hold, and that nothing it holds ends a command in a traceback or a hang."""

import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.at_length import cases

from videotrain.cli import main
from videotrain.strict_yaml import MOST_VALUES, YamlRefused, parse_documents

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
HEAD = "apiVersion: videotrain.dev/v1alpha1\nkind: VideoTrainingRun\nmetadata: {name: demo}\n"
# What a manifest refers to is not asked: the trainer would be started for each.
COMMANDS = (["check", "--quick"], ["check", "--quick", "--json"], ["plan"], ["render"], ["render", "--json"])
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11)
)
MERGE_BOMB = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 11)
)

ODD = [
    *(
        "2026-13-45",
        "99:99:99",
        "0b_",
        "!!int foo",
        "!!set {a}",
        "!!binary a",
        "1e999",
        "-0",
        "9" * 500,
        ".nan",
        "null",
    ),
    *("*x", "&x", "x: &x [*x]", "<<", "~", "[[", "{", "}", "? ", "...", "---", "\t", "''", "\\ud800", '"\\ud800"'),
]


def refused(text):
    with pytest.raises(YamlRefused) as caught:
        parse_documents(text)
    return caught.value


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_read_as_pyyaml_reads_them(path):
    assert parse_documents(path.read_text()) == list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, -2, 0x1F, 0b101, 017, 1_000, 190:20:30, 1.5, .5, -.inf, 6.8523015e+5]",
        "a: [yes, No, on, TRUE, off, ~, null, '', '1', \"on\"]",
        "a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: {<<: [{b: 5, f: 6}, *x], b: 7}\nf: *x",
        "a: |\n  two\n  lines\nb: >-\n  folded\n  text\n? long\n: value\n",
        "a: !!str 12\nb: !!int '7'\nc: !!float 5\nd: !!map {}\ne: !!seq []\n---\n---\nf: '1'\n",
        "",
    ],
)
def test_values_are_those_of_pyyaml(text):
    assert parse_documents(text) == list(yaml.safe_load_all(text))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("2026-13-45", "a date or time"),
        ("2026-11-29", "a date or time"),
        ("2026-11-29T10:00:00Z", "a date or time"),
        ("!!timestamp foo", "a date or time"),
        ("0b_", "'0b_' is no int"),
        ("0x_", "'0x_' is no int"),
        ("!!int foo", "'foo' is no int"),
        ("!!int ''", "'' is no int"),
        ("!!int 1:b", "'1:b' is no int"),
        ("!!float foo", "'foo' is no float"),
        ("!!bool foo", "'foo' is no bool"),
        ("9" * 4400, "a number of 4400 characters"),
        ("0x" + "f" * 4000, "a number of 4002 characters"),
        ("1" + ":59" * 100_000, "a number of 300001 characters"),
        ("!!binary aGVsbG8=", "binary data"),
        ("!!set {x, y}", "a set"),
        ("!!omap [x: 1]", "an ordered mapping"),
        ("!!pairs [x: 1]", "a list of pairs"),
        ("!!int [1]", "tag 'tag:yaml.org,2002:int'"),
        ("!mine x", "tag '!mine'"),
        ("!!python/object/apply:os.system [echo]", "python/object/apply:os.system"),
        ("=", "the key '='"),
        ("<<", "merge key where no key belongs"),
        ("{<<: 5}", "'<<' needs a mapping"),
        ("{1: x}", "key 1 is a number"),
        ("{on: x}", "key true is a boolean"),
        ("{~: x}", "key null is null"),
        ("{[a]: x}", "a list cannot be a key"),
        ("{{a: 1}: x}", "a mapping cannot be a key"),
        ("*nobody", "has no anchor '&nobody'"),
        ("&me [*me]", "'&me' contains itself"),
        ("&me {<<: *me}", "'&me' contains itself"),
    ],
)
@pytest.mark.parametrize("place", ["spec.podTemplate.spec", "spec.seed"])
def test_what_json_does_not_know_is_refused_in_its_place(value, problem, place):
    *parents, last = place.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate([*parents, last])]
    text = HEAD + "\n".join(lines) + f" {value}\n"
    error = refused(text)
    assert problem in error.problem
    assert error.problem.startswith(place)
    assert error.line == len(HEAD.splitlines()) + len(lines)
    assert error.column > len(lines[-1])


@pytest.mark.parametrize(
    "text", ['a: "\\ud800"', 'a: "\\ud83d\\ude00"', "a: \x00", "ä: b\nü: \x01", "a: b: c", "a: [", "&a &a b"]
)
def test_what_is_no_yaml_has_a_place(text):
    error = refused(text)
    assert error.problem
    assert 1 <= error.line <= len(text.splitlines()) + 1
    assert error.column >= 1


def test_a_forbidden_character_is_counted_in_characters():
    error = refused("ä: b\nü: \x01")
    assert (error.line, error.column) == (2, 4)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "a:\n" + " "])
@pytest.mark.parametrize("levels", [66, 500, 100_000])
def test_deep_nesting_is_refused_while_it_is_read(opening, levels):
    text = opening * levels
    if "\n" in opening:
        text = "".join(" " * min(level, 300) + "a:\n" for level in range(min(levels, 300)))
    problem = refused(text).problem
    assert "deeper than 64 levels" in problem or "cannot be a key" in problem


def test_depth_that_aliases_add_is_counted():
    deep = "[" * 40 + "]" * 40
    assert "deeper than 64 levels" in refused(f"a: &a {deep}\nb: {'[' * 40}*a{']' * 40}").problem


@pytest.mark.parametrize("bomb", [BOMB, MERGE_BOMB], ids=["lists", "merges"])
def test_a_bomb_of_aliases_is_weighed_not_built(bomb):
    assert f"more than {MOST_VALUES} values" in refused(bomb).problem


def test_a_long_text_is_not_repeated_without_end():
    text = f"a: &a '{'x' * 100_000}'\nb: [{', '.join(['*a'] * 100)}]"
    assert "characters of text" in refused(text).problem


def test_an_alias_is_a_copy():
    (found,) = parse_documents("a: &x {b: [1]}\nc: *x")
    found["a"]["b"].append(2)
    assert found["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("comment", HEAD + "#" * 10_000_000, "is larger than 3145728 bytes"),
        ("caption", f"{HEAD}spec: {{seed: '{'x' * 10_000_000}'}}", "is larger than 3145728 bytes"),
        ("list", HEAD + "spec: [" + "1, " * 1_000_000 + "1]", f"more than {MOST_VALUES} values"),
        ("stages", HEAD + "spec:\n  stages:\n" + "  - {name: s, task: sample, x: 1}\n" * 30_000, "more than"),
    ],
)
def test_a_huge_file_is_refused_clearly_within_bounded_memory(tmp_path, name, text, problem):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    limit = 2 * 1024**3

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    command = [sys.executable, "-m", "videotrain", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bounded)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


def mutated(source: str, chance: random.Random) -> bytes:
    """A manifest with one to three harms: to its structure, its text or its bytes."""
    lines = source.splitlines()
    for _ in range(chance.randint(1, 3)):
        at, kind = chance.randrange(len(lines)), chance.randrange(7)
        if kind == 0:
            lines[at] = lines[at].partition(":")[0] + ": " + chance.choice(ODD)
        elif kind == 1:
            del lines[at : at + chance.randint(1, 3)]
        elif kind == 2:
            lines.insert(at, chance.choice(lines))
        elif kind == 3:
            lines[at] = " " * chance.randint(0, 8) + lines[at].lstrip()
        elif kind == 4:
            lines.insert(at, " " * chance.randint(0, 8) + chance.choice(ODD))
        elif kind == 5:
            cut = chance.randint(0, len(lines[at]))
            lines[at] = lines[at][:cut] + chance.choice(ODD) + lines[at][cut:]
        lines = lines or [""]
        if kind == 6:
            data = bytearray("\n".join(lines).encode())
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            return bytes(data)
    return "\n".join(lines).encode()


@pytest.mark.parametrize("seed", range(4))
def test_no_mutated_manifest_ends_in_a_traceback(tmp_path, capsys, seed):
    """2,000 of them, in parts that processes may share; at length 10,000."""
    chance = random.Random(seed)
    sources = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))]
    path, codes = tmp_path / "run.yaml", []
    for turn in range(cases(500, 2_500)):
        data = mutated(chance.choice(sources), chance)
        path.write_bytes(data)
        command = COMMANDS[turn % len(COMMANDS)]
        try:
            codes.append(main([*command, str(path)]))
        except BaseException as error:
            raise AssertionError(f"{command} on\n{data!r}") from error
    capsys.readouterr()
    assert set(codes) == {0, 2}
    assert codes.count(0) > len(codes) / 100
