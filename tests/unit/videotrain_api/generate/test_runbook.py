"""A page for every condition and every reason of an event."""

from __future__ import annotations

from videotrain_api.generate.runbook import CONDITIONS, EVENTS, INDEX, runbook_files
from videotrain_api.reasons import NOTICES
from videotrain_api.vocabulary import Condition

SECTIONS = ["## What it means", "## How to look", "## What to do", "## What it costs meanwhile"]


def test_none_is_missing_and_none_is_left_over() -> None:
    assert set(CONDITIONS) == set(Condition)
    assert set(EVENTS) == {str(notice.reason) for notice in NOTICES if notice.where == "event"}


def test_every_page_answers_the_four_questions_and_stands_in_the_index() -> None:
    files = runbook_files()
    index = files.pop(INDEX)
    for path, text in files.items():
        heads = [line for line in text.splitlines() if line.startswith("## ")]
        assert heads == SECTIONS, path
        answers = [part.partition("\n")[2].strip() for part in text.split("## ")[1:]]
        assert all(answers), path
        assert f"({'/'.join(path.split('/')[-2:])})" in index, path


def test_pages_say_what_runs_say() -> None:
    hang = runbook_files()["docs/runbook/events/Hang.md"]
    assert "step {step} was the last for {seconds} s" in hang and "the rank that is in no collective" in hang
    failed = runbook_files()["docs/runbook/conditions/Failed.md"]
    assert "Mend the fault that is named, or raise spec.failurePolicy.limits." in failed
