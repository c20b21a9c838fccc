"""The import law can be broken: forbidden imports are planted in a copy of the sources, and the linter names each."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "videotrain_api": "api",
    "videotrain_operator": "operator",
    "videotrain_trainer": "trainer",
    "videotrain": "cli",
}
CONTRACTS = configparser.ConfigParser()
CONTRACTS.read(ROOT / ".importlinter")

PLANTS = [
    # contract, module that breaks it, what it imports
    ("api", "videotrain_api.records", "numpy"),
    ("api", "videotrain_api.rules.pods", "videotrain_operator.planner.plan"),
    ("api-pure", "videotrain_api.config.resolve", "pathlib"),
    ("api-pure", "videotrain_api.metrics", "grafana_foundation_sdk"),
    ("api-layers", "videotrain_api.resource.pool", "videotrain_api.cost.forecast"),
    ("api-layers", "videotrain_api.rules.facts", "videotrain_api.crd.cel"),
    ("operator", "videotrain_operator.manager.main", "torch"),
    ("operator", "videotrain_operator.cluster.podview", "videotrain_trainer.errors"),
    ("operator-layers", "videotrain_operator.cluster.interface", "videotrain_operator.kube.client"),
    ("operator-layers", "videotrain_operator.telemetry", "videotrain_operator.reconcile"),
    ("planner", "videotrain_operator.planner.health", "videotrain_operator.kube.client"),
    ("planner", "videotrain_operator.planner.bill", "time"),
    ("planner", "videotrain_operator.planner.bill", "requests"),
    ("accounting", "videotrain_operator.accounting.money", "videotrain_operator.telemetry"),
    ("accounting", "videotrain_operator.accounting.money", "os"),
    ("purity", "videotrain_operator.accounting.ledger", "kubernetes"),
    ("simulation", "videotrain_operator.simulation.world", "random"),
    ("trainer", "videotrain_trainer.agent.server", "videotrain_operator.kube.client"),
    ("trainer", "videotrain_trainer.tasks.curate", "kopf"),
    ("trainer-layers", "videotrain_trainer.storage", "videotrain_trainer.training.loop"),
    ("trainer-layers", "videotrain_trainer.parallel.shards", "videotrain_trainer.checkpoint.fragments"),
    ("networks-layers", "videotrain_trainer.networks.layout_rules", "videotrain_trainer.networks.build"),
    ("networks-layers", "videotrain_trainer.networks.losses.lpips_files", "videotrain_trainer.networks.mmdit.model"),
    ("models", "videotrain_trainer.networks.mmdit.model", "videotrain_trainer.storage"),
    ("models", "videotrain_trainer.networks.mmdit.model", "videotrain_trainer.networks.build"),
    ("models", "videotrain_trainer.networks.autoencoders.dc_ae", "einops"),
    ("models", "videotrain_trainer.text.byte_encoder", "videotrain_trainer.text.files"),
    ("models-common", "videotrain_trainer.networks.common", "videotrain_trainer.errors"),
    ("arithmetic", "videotrain_trainer.data.sample_order", "torch"),
    ("curation", "videotrain_trainer.curation.pipeline", "videotrain_trainer.networks.build"),
    ("cli", "videotrain.local.session", "videotrain_trainer.worker.main"),
    ("light", "videotrain.commands.check", "videotrain_operator.kube.client"),
    ("cli-client", "videotrain.commands.get", "kubernetes"),
    ("cli-layers", "videotrain.report.summary", "videotrain.local.session"),
]
CIRCLE = ("videotrain_operator.planner.decision", "videotrain_operator.planner.plan")
NEW_ROOMS = [
    ("api-layers", "videotrain_api.unplaced"),
    ("operator-layers", "videotrain_operator.unplaced"),
    ("trainer-layers", "videotrain_trainer.unplaced"),
    ("networks-layers", "videotrain_trainer.networks.unplaced"),
    ("cli-layers", "videotrain.unplaced"),
]


def name_of(contract: str) -> str:
    return CONTRACTS[f"importlinter:contract:{contract}"]["name"]


def file_of(root: Path, module: str) -> Path:
    return root / DISTRIBUTIONS[module.split(".")[0]] / f"{module.replace('.', '/')}.py"


def plant(module: Path, imported: str) -> None:
    """Inside a function, where a reader would look for it last."""
    with module.open("a") as file:
        file.write(f"\n\ndef planted_{abs(hash(imported))}():\n    import {imported}\n\n    return {imported}\n")


def copy_of_the_sources(to: Path) -> Path:
    for package, folder in DISTRIBUTIONS.items():
        shutil.copytree(ROOT / folder / package, to / folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".importlinter", "tests/support/allowed_imports.py"):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)
    return to


def lint(root: Path) -> tuple[int, str]:
    paths = os.pathsep.join(str(root / folder) for folder in DISTRIBUTIONS.values())
    done = subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def broken(report: str) -> dict[str, str]:
    """What the linter says about each broken contract, by the contract's name."""
    _, _, details = report.partition("Broken contracts")
    titles = [options["name"] for section, options in CONTRACTS.items() if section.startswith("importlinter:contract:")]
    starts = sorted((details.index(f"\n{title}\n-"), title) for title in titles if f"\n{title}\n-" in details)
    ends = [start for start, _ in starts[1:]] + [len(details)]
    return {title: details[start:end] for (start, title), end in zip(starts, ends, strict=bool(starts))}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The linter's report on a copy in which every plant stands."""
    root = copy_of_the_sources(tmp_path_factory.mktemp("planted"))
    for module, imported in [CIRCLE, *((module, imported) for _, module, imported in PLANTS)]:
        plant(file_of(root, module), imported)
    code, report = lint(root)
    assert code == 1
    return broken(report)


def test_the_sources_keep_the_law(tmp_path: Path):
    code, report = lint(copy_of_the_sources(tmp_path))
    assert code == 0, report
    assert broken(report) == {}


@pytest.mark.parametrize(("contract", "module", "imported"), PLANTS, ids=lambda value: value.rpartition(".")[2])
def test_a_planted_import_breaks_the_contract_that_forbids_it(planted, contract, module, imported):
    details = planted[name_of(contract)]
    lines = [line for line in details.splitlines() if module in line]
    assert any(imported in line for line in lines), details


def test_a_planted_circle_breaks_its_contract(planted):
    assert ".decision -> .plan" in planted[name_of("circles")]


def test_every_contract_has_a_plant():
    sections = {section.rpartition(":")[2] for section in CONTRACTS.sections() if ":contract:" in section}
    assert sections == {"circles", *(contract for contract, _, _ in PLANTS)}


def test_a_new_room_must_be_given_its_place(tmp_path: Path):
    root = copy_of_the_sources(tmp_path)
    for _, module in NEW_ROOMS:
        file_of(root, module).write_text("")
    code, report = lint(root)
    assert code == 1
    for contract, module in NEW_ROOMS:
        assert module in report, name_of(contract)


def test_no_import_is_excused():
    assert [section for section in CONTRACTS.sections() if "ignore_imports" in CONTRACTS[section]] == []
    assert [section for section in CONTRACTS.sections() if "exhaustive_ignores" in CONTRACTS[section]] == []
