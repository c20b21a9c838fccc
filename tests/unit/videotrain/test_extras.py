"""An extra brings everything that its command imports, and a missing library is told with the way to install it."""

from __future__ import annotations

import importlib

import pytest
from support.closure import ROOT, closure, run_with_only

from videotrain.errors import UsageError
from videotrain.extras import INSTALL, brought_by

ROOMS = {
    "local": (
        "commands/local.py",
        "local",
        "embedded",
        "kubelet/address_pool.py",
        "objectstore",
        "processes",
        "report",
    ),
    "cluster": ("commands/cluster.py", "controlplane", "kubelet", "objectstore", "processes"),
}
IMPORT_ALL = """
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def module_names(extra: str) -> list[str]:
    source = ROOT / "cli"
    places = [source / "videotrain" / room for room in ROOMS[extra]]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    return [".".join(file.relative_to(source).with_suffix("").parts) for file in files if file.name != "__init__.py"]


@pytest.mark.parametrize("extra", ["local", "cluster"])
def test_an_extra_brings_what_its_rooms_import(extra):
    names = module_names(extra)
    assert f"videotrain.commands.{extra}" in names
    done = run_with_only(closure(f"videotrain[{extra}]"), IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "kopf", "numpy"} & set(done.stdout.split()), "the command never imports these"


def test_the_cluster_needs_no_torch():
    assert "torch" in closure("videotrain[local]")
    assert "torch" not in closure("videotrain[cluster]")


@pytest.mark.parametrize("extra", ["local", "cluster"])
def test_the_line_that_installs_an_extra_names_every_distribution_of_ours(extra):
    folders = {"videotrain-api": "./api", "videotrain-operator": "./operator", "videotrain-trainer": "./trainer"}
    needed = {folders[name] for name in closure(f"videotrain[{extra}]") if name in folders}
    words = INSTALL[extra].split()
    assert words[:2] == ["pip", "install"]
    assert set(words[2:]) == needed | {f"'./cli[{extra}]'"}


def test_a_missing_library_is_a_wrong_use_of_the_command():
    wanted = r"`videotrain local` needs the Python package absent_library, which is not installed"
    with pytest.raises(UsageError, match=wanted), brought_by("local"):
        importlib.import_module("absent_library.part")


def test_a_missing_module_of_our_own_is_a_fault():
    with pytest.raises(ModuleNotFoundError), brought_by("local"):
        importlib.import_module("videotrain.absent")
