"""GPUs of a machine, shared out among nodes and pods."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

from videotrain.cli import build_parser
from videotrain.errors import UsageError
from videotrain.processes.devices import Device, Found, Need, NodeDevices, find_devices, share_devices
from videotrain.processes.podfiles import ContainerConfigError

FIELDS = "spec.nodes.max or spec.pool.gpusPerNode"


def need(nodes, per_node):
    return Need(nodes=nodes, per_node=per_node, fields=FIELDS)


def gpus(count):
    return Found(
        names=tuple(map(str, range(count))), detail=f"{count} x H200" if count else "there is no NVIDIA driver"
    )


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("count", "nodes", "per_node", "expected"),
    [
        (1, 1, 1, [("0",)]),
        (2, 1, 2, [("0", "1")]),
        (2, 2, 1, [("0",), ("1",)]),
        (8, 2, 2, [("0", "1"), ("2", "3")]),
        (8, 2, 4, [("0", "1", "2", "3"), ("4", "5", "6", "7")]),
    ],
)
def test_every_worker_process_gets_a_gpu_where_there_are_enough(device, count, nodes, per_node, expected):
    shares = share_devices(device, need(nodes, per_node), gpus(count))
    assert list(shares.nodes) == expected
    assert shares.by_name() == {f"node-{number}": names for number, names in enumerate(expected)}
    assert f"{count} x H200" in shares.summary and f"node-0: {', '.join(expected[0])}" in shares.summary


@pytest.mark.parametrize(("count", "nodes", "per_node"), [(1, 1, 2), (1, 2, 1), (2, 2, 2), (8, 3, 4)])
def test_too_few_gpus_are_left_alone_and_it_is_said(count, nodes, per_node):
    shares = share_devices("auto", need(nodes, per_node), gpus(count))
    assert shares.nodes == ((),) * nodes
    for told in ("devices: the CPU", f"need {nodes * per_node} GPUs", f"{count} x H200", FIELDS):
        assert told in shares.summary


def test_without_gpus_the_cpu_is_used_and_the_reason_told():
    assert share_devices("auto", need(2, 2), gpus(0)).summary == "devices: the CPU (there is no NVIDIA driver)"


def test_the_cpu_is_used_when_asked_for_whatever_there_is():
    assert share_devices("cpu", need(2, 2), gpus(8)).nodes == ((), ())


@pytest.mark.parametrize(
    ("count", "found"), [(0, "0 GPUs can be used here (there is no"), (1, "1 GPU can"), (2, "2 GPUs")]
)
def test_cuda_is_refused_with_what_is_needed_found_and_allowed(count, found):
    with pytest.raises(UsageError) as refused:
        share_devices("cuda", need(2, 2), gpus(count))
    message = str(refused.value)
    assert message.startswith("--device cuda: 2 nodes with 2 worker processes each would need 4 GPUs")
    assert found in message and FIELDS in message and "--device auto or --device cpu" in message


@pytest.mark.parametrize("command", [["local", "x.yaml", "--workdir", "w"], ["cluster", "up"]])
def test_the_command_line_takes_every_device_and_nothing_else(command):
    for device in get_args(Device):
        assert build_parser().parse_args([*command, "--device", device]).device == device
    assert build_parser().parse_args(command).device == "auto"
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "--device", "gpu"])


class Machine:
    """A machine with a driver, whose trainer answers as told."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.driver = folder, folder / "version"
        self.driver.touch()
        self.asked = folder / "asked"
        monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def trainer(self, script):
        program = self.folder / "videotrain-trainer"
        program.write_text(f"#!/bin/sh\necho $1:$CUDA_VISIBLE_DEVICES >> {self.asked}\n{script}\n")
        program.chmod(0o755)

    def answers(self, names, **more):
        report = {"pytorch": "2.13.0", "cuda": "13.0", "names": names, **more}
        self.trainer(f"echo '{json.dumps(report)}'")

    def find(self, visible=None):
        environment = {"PATH": "/usr/bin:/bin"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
        return find_devices(environment, [self.folder / "absent", self.driver])


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_gpus_are_named_by_their_numbers(machine):
    machine.answers(["NVIDIA H200"] * 2 + ["NVIDIA L4"])
    assert machine.find() == Found(names=("0", "1", "2"), detail="2 x NVIDIA H200, 1 x NVIDIA L4")
    assert machine.asked.read_text() == "devices:\n"


def test_the_gpus_of_the_environment_are_the_ones_to_share(machine):
    machine.answers(["NVIDIA H200"] * 2)
    found = machine.find("5, GPU-8a3,9,1")
    assert found.names == ("5", "GPU-8a3"), "CUDA stopped at 9, which is not there"
    assert found.detail == "2 x NVIDIA H200, of CUDA_VISIBLE_DEVICES"
    assert machine.asked.read_text() == "devices:5, GPU-8a3,9,1\n"


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_an_environment_without_gpus_is_believed_and_nobody_is_asked(machine, visible):
    machine.answers(["NVIDIA H200"])
    assert machine.find(visible) == Found(detail="CUDA_VISIBLE_DEVICES names no GPU")
    assert not machine.asked.exists()


def test_without_a_driver_nobody_is_asked(machine):
    machine.answers(["NVIDIA H200"])
    machine.driver.unlink()
    assert machine.find() == Found(detail="there is no NVIDIA driver")
    assert not machine.asked.exists()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            """echo '{"pytorch": "2.13.0", "cuda": "13.0", "problem": "the driver is too old"}'""",
            "the driver is too old",
        ),
        ("""echo '{"pytorch": "2.13.0", "cuda": "13.0"}'""", "PyTorch 2.13.0 finds no GPU that it can use"),
        ("echo 'ImportError: libcudart' >&2; exit 1", "PyTorch cannot start: ImportError: libcudart"),
        ("kill -9 $$", "PyTorch cannot start: exit code -9"),
        ("echo nonsense", "videotrain-trainer gave no answer about its GPUs"),
    ],
)
def test_a_driver_that_cannot_be_used_is_told_with_the_reason(machine, script, told):
    machine.trainer(script)
    found = machine.find()
    assert found.names == ()
    assert found.detail.startswith("there is an NVIDIA driver, but ") and told in found.detail


def test_without_the_trainer_its_gpus_are_not_used(machine):
    assert machine.find().detail == (
        "there is an NVIDIA driver, but the program videotrain-trainer, which would use its GPUs, is not installed"
    )


def test_the_trainer_itself_answers(tmp_path):
    missing = "GPU-00000000-0000-0000-0000-000000000000"  # no machine has it
    found = find_devices({"PATH": str(Path(sys.executable).parent), "CUDA_VISIBLE_DEVICES": missing}, [tmp_path])
    assert found.names == ()
    assert "PyTorch" in found.detail and "cannot start" not in found.detail and missing in found.detail


def test_pods_of_a_node_never_see_the_same_gpu():
    node = NodeDevices(("4", "5", "6"))
    assert node.take("a", 2) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert node.take("b", 1) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert node.take("a", 2) == {"CUDA_VISIBLE_DEVICES": "4,5"}, "a container that starts again keeps its GPUs"
    assert node.take("none", 0) == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(ContainerConfigError, match="2 GPUs are asked for, and 0 of the node's are free yet"):
        node.take("c", 2)
    node.give_back("a")
    assert node.take("c", 2) == {"CUDA_VISIBLE_DEVICES": "4,5"}


def test_a_node_on_the_cpu_only_counts_gpus():
    assert NodeDevices(()).take("a", 8) == {"CUDA_VISIBLE_DEVICES": ""}
