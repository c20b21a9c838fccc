import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from videotrain import __version__
from videotrain.cli import main
from videotrain.embedded.database import Database, Key, Row

EXAMPLES = Path(__file__).parents[3] / "manifests/examples"
OPEN_SORA = EXAMPLES / "open-sora-2.yaml"
PUBLISHED_SECONDS = {"256px-t2v": 10.2, "256px-ti2v": 13.3, "768px-ti2v": 53.2}
GIVEN = [part for n, s in PUBLISHED_SECONDS.items() for part in ("--seconds-per-step", f"{n}={s}")]


def refused(capsys, *arguments):
    """Standard error of a command that is refused with exit code 2 and no traceback."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def unusable(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def out(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert out(capsys, "version") == f"videotrain {__version__}\n"


def test_the_version_is_an_option_too(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"videotrain {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_what_completes(capsys, shell):
    assert "videotrain" in out(capsys, "completion", shell) and "_ARGCOMPLETE" in out(capsys, "completion", shell)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [("videotrain pl", {"plan"}), ("videotrain render --su", {"--summary"}), ("videotrain get -o ya", {"yaml"})],
)
def test_bash_completes_commands_options_and_choices(tmp_path, line, found):
    program = tmp_path / "videotrain"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m videotrain "$@"\n')
    program.chmod(0o755)
    words = line.split()
    script = f"""
    PATH={tmp_path}:$PATH
    eval "$(videotrain completion bash)"
    COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_TYPE=9
    _python_argcomplete videotrain {words[-1]} {words[-2]}
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert {word.strip() for word in done.stdout.split()} == found, done.stderr


def test_a_manifest_may_come_from_standard_input_with_other_values(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(OPEN_SORA.read_bytes())))
    text = out(capsys, "render", "--filename", "-", "--set", "metadata.name=other", "--one")
    documents = list(yaml.safe_load_all(text))
    assert [each["metadata"]["name"] for each in documents if each["kind"] == "Pod"] == ["other-w0"]
    assert "# Left out: 27 worker pods like the one below." in text


def test_every_run_of_every_file_is_checked(capsys, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(OPEN_SORA.read_text() + "\n---\n" + OPEN_SORA.read_text())
    told = [
        line
        for line in out(capsys, "check", path, "-f", EXAMPLES / "tiny.yaml", "--quick").splitlines()
        if "can be accepted. Stages" in line
    ]
    starts = [f"{path}: run 1: open-sora-2", f"{path}: run 2: open-sora-2", f"{EXAMPLES / 'tiny.yaml'}: tiny"]
    assert [line.startswith(start) for line, start in zip(told, starts, strict=True)] == [True, True, True]
    assert "2 runs are named" in refused(capsys, "local", path, "--workdir", tmp_path / "w")
    assert "no manifest is named" in refused(capsys, "plan")


def test_a_summary_has_a_line_for_each_kind(capsys):
    lines = out(capsys, "render", OPEN_SORA, "--summary").splitlines()
    assert "  28 Pod            open-sora-2-w0 to open-sora-2-w27" in lines
    assert "nvidia.com/gpu 8" in lines[-1]


def test_python_m_videotrain_is_the_command():
    done = subprocess.run([sys.executable, "-m", "videotrain", "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"videotrain {__version__}\n")


@pytest.mark.parametrize("command", ["local", "plan", "check", "render", "get", "cluster"])
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: videotrain {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "x.yaml", "--mfu", "45"], "'45' is no utilisation"),
        (["plan", "x.yaml", "--mfu", "nan"], "'nan' is no utilisation"),
        (["plan", "x.yaml", "--failures", "-1"], "'-1' is no amount"),
        (["plan", "x.yaml", "--hours-of-video", "inf"], "'inf' is no amount"),
        (["plan", "x.yaml", "--seconds-per-step", "train"], "'train' is not STAGE=SECONDS"),
        (["plan", "x.yaml", "--seconds-per-step", "train=-1"], "'train=-1' is not STAGE=SECONDS"),
        (["plan", "x.yaml", "--seconds-per-step", "train=inf"], "'train=inf' is not STAGE=SECONDS"),
        (["local", "x.yaml", "--workdir", "w", "--seed", "-1"], "no seed"),
        (["local", "x.yaml", "--workdir", "w", "--seed", "1.5"], "'1.5' is no seed"),
        (["local", "x.yaml", "--workdir", "w", "--metrics-port", "70000"], "'70000' is no port"),
        (["local", "x.yaml"], "--workdir"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, arguments, expected):
    assert expected in unusable(capsys, *arguments)


@pytest.mark.parametrize("command", ["plan", "check", "render"])
def test_a_missing_file_is_one_clear_line(capsys, tmp_path, command):
    path = tmp_path / "none.yaml"
    assert refused(capsys, command, path) == (
        f"videotrain: {path}: there is no such file; name a YAML file with a VideoTrainingRun\n"
    )


@pytest.mark.parametrize("command", ["plan", "check", "render"])
def test_a_bad_manifest_is_refused_with_every_problem(capsys, tmp_path, command):
    manifest = yaml.safe_load(OPEN_SORA.read_text())
    manifest["spec"]["pool"]["pricePerGpuHour"] = "-2"
    manifest["spec"]["sead"] = 1
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(manifest))
    message = refused(capsys, command, path)
    assert f"{path}: the manifest is refused:" in message
    assert "spec.pool.pricePerGpuHour: '-2'" in message
    assert "did you mean 'seed'?" in message


def test_a_manifest_that_can_be_accepted_is_told_so(capsys):
    stages = "256px-t2v (train), 256px-ti2v (train), 768px-ti2v (train)"
    shown = out(capsys, "check", OPEN_SORA, "--quick").splitlines()
    assert shown[0] == f"{OPEN_SORA}: open-sora-2 can be accepted. Stages: {stages}"
    checked = json.loads(out(capsys, "check", OPEN_SORA, "--quick", "--json"))
    assert checked.pop("findings")
    assert checked == {"file": str(OPEN_SORA), "valid": True, "name": "open-sora-2", "problems": []}


def test_every_problem_of_a_manifest_is_told_to_machines(capsys, tmp_path):
    manifest = yaml.safe_load(OPEN_SORA.read_text())
    manifest["spec"]["pool"]["pricePerGpuHour"] = "-2"
    manifest["spec"]["sead"] = 1
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(manifest))
    assert main(["check", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    checked = json.loads(captured.out)
    assert captured.err == ""
    assert (checked["valid"], checked["name"]) == (False, None)
    values = {problem["path"]: problem["value"] for problem in checked["problems"]}
    assert values == {"spec.pool.pricePerGpuHour": "-2", "spec.sead": 1}
    assert "did you mean 'seed'?" in next(p["message"] for p in checked["problems"] if p["path"] == "spec.sead")


def test_a_file_that_is_no_yaml_is_one_problem_without_a_path(capsys, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\n")
    assert main(["check", str(path), "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["path"] == "" and problem["message"].startswith(f"{path}:2:1: not valid YAML")


def test_the_published_gpu_days_are_reproduced_from_the_published_step_times(capsys):
    plan = json.loads(out(capsys, "plan", OPEN_SORA, *GIVEN, "--json"))
    days = {s["name"]: s["gpuDays"] for s in plan["forecast"]["stages"]}
    for name, published in {"256px-t2v": 2240, "256px-ti2v": 384, "768px-ti2v": 1536}.items():
        assert days[name] == pytest.approx(published, rel=0.02)
    assert plan["forecast"]["gpuDays"] == pytest.approx(4160, rel=0.02)
    assert float(plan["forecast"]["cost"]) == pytest.approx(199_680, rel=0.02)
    assert (plan["published"]["gpuDays"], plan["published"]["cost"]) == (4160, "199680.00")
    assert plan["modelled"]["gpuDays"] < plan["forecast"]["gpuDays"]
    assert {s["source"] for s in plan["modelled"]["stages"]} == {"modelled"}


def test_the_table_shows_given_published_and_modelled_side_by_side(capsys):
    shown = out(capsys, "plan", OPEN_SORA, *GIVEN, "--mfu", "0.5")
    for expected in ("given", "published", "modelled at 50 % MFU", "4,160.00", "199,680.00", "+0.3 %", "2.00 USD"):
        assert expected in shown
    assert "…" not in shown


def test_without_step_times_the_table_shows_the_model_beside_the_published_run(capsys):
    shown = out(capsys, "plan", OPEN_SORA)
    for expected in ("modelled, mid rates", "4,160.00", "15.0 %", "11.5 %", "8.9 %", "Movie Gen", "2,500,000.00"):
        assert expected in shown
    assert "given" not in shown
    assert "…" not in shown


def test_all_that_the_tables_say_is_in_the_document_too(capsys):
    arguments = ("plan", OPEN_SORA, "--failures", "5", "--hours-of-video", "1000")
    document = json.loads(out(capsys, *arguments, "--json"))
    planned = document["forecast"]
    assert document["failuresPer1000GpuDays"] == 5
    assert {"low", "mid", "high"} == set(planned["costByBand"]) == set(planned["stages"][0]["bands"])
    assert planned["stages"][0]["overheads"]["failures"] > 0 and planned["preparation"]["clips"] == 450_000
    assert [row["model"] for row in document["published"]["otherModels"]] == [
        "Movie Gen",
        "Step-Video-T2V",
        "Open-Sora 2.0",
    ]
    shown = out(capsys, *arguments)
    for change in document["sensitivity"]:
        assert change["what"] in shown
    for cost in (planned["cost"], planned["overheadCost"], planned["totalCost"], *planned["costByBand"].values()):
        assert f"{float(cost):,.2f}" in shown
    assert "Preparing 1,000 hours" in shown
    assert "5 per 1,000 GPU-days" in shown


def test_other_runs_are_not_compared(capsys):
    shown = out(capsys, "plan", EXAMPLES / "demo.yaml")
    assert "published" not in shown
    assert "not in the sum: curate, encode" in shown
    assert "published" not in json.loads(out(capsys, "plan", EXAMPLES / "demo.yaml", "--json"))


def test_a_run_without_failures_can_be_planned_and_one_without_videos_not(capsys):
    planned = json.loads(out(capsys, "plan", OPEN_SORA, "--failures", "0", "--json"))["forecast"]
    assert {stage["overheads"]["failures"] for stage in planned["stages"]} == {0}
    assert "hours of video are 0" in refused(capsys, "plan", OPEN_SORA, "--hours-of-video", "0")


def test_a_step_time_of_an_unknown_stage_is_refused(capsys):
    message = refused(capsys, "plan", OPEN_SORA, "--seconds-per-step", "nope=3")
    assert "'nope'" in message
    assert "256px-t2v" in message


@pytest.mark.parametrize("name", ["demo.yaml", "open-sora-2.yaml"])
def test_rendered_objects_are_valid_kubernetes_objects(capsys, name):
    objects = list(yaml.safe_load_all(out(capsys, "render", EXAMPLES / name)))
    assert objects == json.loads(out(capsys, "render", EXAMPLES / name, "--json"))["items"]
    for each in objects:
        kubernetes_validate.validate(each, "1.33", strict=True)
    kinds = [each["kind"] for each in objects]
    assert kinds[:2] == ["ConfigMap", "ConfigMap"], "the frozen configuration and the roster before the pods"
    assert kinds[2] == "NetworkPolicy", "before the pods, too"
    assert set(kinds[3:]) == {"Pod"}


def test_all_worker_pods_of_the_first_stage_are_rendered(capsys):
    items = json.loads(out(capsys, "render", OPEN_SORA, "--json"))["items"]
    pods = [each["metadata"]["name"] for each in items if each["kind"] == "Pod"]
    assert pods == [f"open-sora-2-w{n}" for n in range(28)]


@pytest.fixture
def stored(finished, tmp_path):
    """A working directory with the run in its cluster database."""
    database = Database(tmp_path / "cluster.db")
    run = finished.run()
    database.commit({Key("VideoTrainingRun", "default", "demo"): Row(1, run)}, 7)
    database.close()
    return tmp_path


def test_get_shows_phase_generations_and_bill(capsys, stored):
    shown = out(capsys, "get", "--workdir", stored)
    for expected in ("demo", "Succeeded", "NodeLost", "176.469136", "a worker process stands for a GPU"):
        assert expected in shown


def test_get_gives_the_run_as_json(capsys, stored, finished):
    assert json.loads(out(capsys, "get", "--workdir", stored, "--json")) == finished.run()


def test_get_of_another_folder_is_refused(capsys, tmp_path):
    message = refused(capsys, "get", "--workdir", tmp_path / "elsewhere")
    assert "there is no cluster.db here" in message


@pytest.mark.parametrize("command", [["local", "run.yaml"], ["get"]])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_of_a_folder_is_refused(command, name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--workdir", name])
    assert ended.value.code == 2
    assert "names no folder" in capsys.readouterr().err


# `check --quick`: whether data and weights are there depends on the machine.
ACCEPTING = [["plan"], ["check", "--quick"], ["render"]]


@pytest.mark.parametrize("command", ACCEPTING, ids=lambda command: command[0])
def test_pods_are_checked_by_the_policy_of_the_cluster(tmp_path, capsys, command):
    run = yaml.safe_load((EXAMPLES / "tiny.yaml").read_text())
    run["spec"]["podTemplate"] = {"spec": {"securityContext": {"runAsUser": 0, "runAsNonRoot": False}}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    assert main([*command, str(path)]) == 2
    refused = capsys.readouterr().err
    assert (
        "spec.podTemplate.spec.securityContext.runAsUser: 0: " in refused and "podTemplate.policy: baseline" in refused
    )
    assert main([*command, str(path), "--pod-policy", "baseline"]) == 0


@pytest.mark.parametrize("command", ACCEPTING, ids=lambda command: command[0])
def test_runs_are_checked_by_the_defaults_of_the_cluster(tmp_path, capsys, command):
    run = yaml.safe_load((EXAMPLES / "tiny.yaml").read_text())
    run["spec"]["image"] = "docker.io/mine/trainer:1"
    path, values, config_map = (tmp_path / name for name in ("run.yaml", "values.yaml", "config.yaml"))
    path.write_text(yaml.safe_dump(run))
    defaults = {"registry": "registry.example.com", "image": "", "enforced": ["registry"]}
    values.write_text(yaml.safe_dump({"replicas": 2, "runDefaults": defaults}))
    told = {name: value for name, value in defaults.items() if value}
    data = {"defaults.json": json.dumps(told)}
    config_map.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "data": data}))
    for file in (values, config_map):
        assert main([*command, str(path), "--defaults", str(file)]) == 2
        refused = capsys.readouterr().err
        assert "spec.image: 'docker.io/mine/trainer:1'" in refused and "runDefaults.registry" in refused
        assert main([*command, str(path), "--set", "image=trainer:1", "--defaults", str(file)]) == 0
        assert ("image: registry.example.com/trainer:1" in capsys.readouterr().out) == (command == ["render"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("replicas: 2\n", "no runDefaults"),
        ("runDefaults: 3\n", "a mapping is needed"),
        ("runDefaults: {imag: x}\n", "did you mean 'image'"),
        ("kind: ConfigMap\ndata: {}\n", "defaults.json"),
        ("kind: ConfigMap\ndata: x\n", "defaults.json"),
        ("runDefaults: {imagee: x}\n", "defaults.yaml: the defaults are refused:\n  imagee"),
        ("kind: ConfigMap\ndata: {defaults.json: '{'}\n", "no JSON"),
        ("a: [\n", "defaults.yaml:2"),
    ],
)
def test_defaults_that_cannot_be_read_are_refused(tmp_path, capsys, text, told):
    file = tmp_path / "defaults.yaml"
    file.write_text(text)
    assert main(["check", str(EXAMPLES / "tiny.yaml"), "--defaults", str(file)]) == 2
    assert told in capsys.readouterr().err
