"""A bill to trackers when a store, a tracker or a name is not what it should be; the packages are in tests/trackers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from videotrain_api.billing.document import RunBill, bill_text
from videotrain_api.resource.tracking import Tracking
from videotrain_api.storage import layout
from videotrain_trainer.checksums import unsealed_json
from videotrain_trainer.cli import main
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.journal import bill as journal_bill
from videotrain_trainer.journal.bill import attach_bill
from videotrain_trainer.journal.stored_tracker import write_told
from videotrain_trainer.journal.trackers import BILL

BILLED = RunBill(
    run="test",
    namespace="default",
    uid="uid",
    phase="Succeeded",
    closed=True,
    as_of=datetime(2026, 11, 30, tzinfo=UTC),
    currency="USD",
    total="1.00",
    total_micros=1_000_000,
    estimated=False,
    gpu_microseconds_by_bucket={},
    micros_by_bucket={},
    waste_micros_by_cause={},
    stages=[],
    rows=[],
)
BOTH = Tracking(to=["tensorboard", "wandb"])


@dataclass
class Kept:
    """A tracker that writes a file for each bill, or raises."""

    folder: Path = Path()
    trouble: list = field(default_factory=list)
    bills: int = 0
    CONTINUES = False

    def bill(self, bill, path):
        if self.trouble:
            raise self.trouble.pop()
        self.bills += 1
        place = self.folder / BILL
        place.mkdir(parents=True)
        (place / f"{self.bills}-{path.name}").write_bytes(path.read_bytes())

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def trackers(monkeypatch):
    """By name."""
    kept = {name: Kept() for name in BOTH.to}

    def made(run):
        one = kept[run.folder.name]
        one.folder = run.folder
        return one

    for name in kept:
        monkeypatch.setitem(journal_bill.TRACKERS, name, made)
    return kept


@pytest.fixture
def attach(storage, tmp_path):
    """Attach it by a process with a folder of its own; (tracker, had it before, failed) of each."""

    def once(bill=BILLED):
        scratch = tmp_path / f"try-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        return [(one.tracker, one.before, one.error is not None) for one in attach_bill(bill, BOTH, storage, scratch)]

    return once


def told(store, storage):
    return unsealed_json(store.get(f"{layout.tracking_prefix(storage.uri, 'test')}/told.json"))["trackers"]


def test_one_that_fails_gets_it_later_and_nobody_gets_it_twice(attach, trackers, store, storage):
    write_told(
        store, layout.tracking_prefix(storage.uri, "test"), "uid", {"wandb": {"train": 7}, "mlflow": {"train": 9}}
    )
    trackers["tensorboard"].trouble = [OSError("cut")]
    assert attach() == [("tensorboard", False, True), ("wandb", False, False)]
    assert attach() == [("tensorboard", False, False), ("wandb", True, False)]
    assert attach() == [("tensorboard", True, False), ("wandb", True, False)]
    assert [one.bills for one in trackers.values()] == [1, 1]
    assert told(store, storage) == {"wandb": {"train": 7, BILL: 1}, "mlflow": {"train": 9}, "tensorboard": {BILL: 1}}


def test_what_a_killed_try_left_is_replaced(attach, trackers, store, storage):
    prefix = layout.tracking_prefix(storage.uri, "test")
    attach()
    store.delete(f"{prefix}/told.json")  # it was killed before it could say so
    attach()
    names = [found.uri.removeprefix(f"{prefix}/") for found in store.list(prefix)]
    assert names == [f"tensorboard/{BILL}/2-bill.json", "told.json", f"wandb/{BILL}/2-bill.json"]


def test_an_open_bill_and_one_of_another_run_of_this_name_are_refused(attach, trackers, store, storage):
    with pytest.raises(ConfigError, match="is open: its run is Running"):
        attach(BILLED.model_copy(update={"closed": False, "phase": "Running"}))
    attach()
    with pytest.raises(ConfigError, match="is of run uid, which has this name, too; the bill is of another"):
        attach(BILLED.model_copy(update={"uid": "another"}))
    assert [one.bills for one in trackers.values()] == [1, 1]


def test_the_command_tells_each_tracker_and_what_package_is_missing(trackers, storage, tmp_path, capsys):
    (tmp_path / "bill.json").write_text(bill_text(BILLED))
    config = {"storage": storage.to_wire(), "tracking": BOTH.to_wire()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["bill", str(tmp_path / "bill.json"), "--config", str(tmp_path / "config.json")]
    trackers["wandb"].trouble = [ModuleNotFoundError("No module named 'wandb'")]
    assert main(command) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "tensorboard: bill attached"
    assert second.startswith("wandb: no bill attached: ModuleNotFoundError: No module named 'wandb': ")
    assert "videotrain-trainer[wandb]" in second
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == ["tensorboard: had the bill already", "wandb: bill attached"]
    (tmp_path / "bill.json").write_text(bill_text(BILLED).replace("1.00", "2.00"))
    assert main(command) != 0
    assert "was changed" in capsys.readouterr().err
