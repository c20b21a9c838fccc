"""Prompts of a batch from a file: one per line of a text file, or rows of a CSV file with a header.

Nothing is guessed: an unknown column, a wrong value or an empty prompt is an error that names file and line.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from videotrain_api.resource.sampling import SEEDS
from videotrain_api.resource.stages import ConditionKind
from videotrain_trainer.errors import ConfigError

COLUMNS = ("text", "negative", "image", "last_image", "video", "condition", "seed", "name")
KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt; what is None comes from the command's flags."""

    where: str
    """File and line, for messages."""
    text: str
    negative: str | None = None
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    condition: ConditionKind | None = None
    """By the references if None."""
    seed: int | None = None
    name: str | None = None
    """Of the output file."""


def condition_for(row: PromptRow) -> ConditionKind:
    """The row's condition, else the usual one for its references."""
    if row.condition is not None:
        return row.condition
    if row.video is not None:
        return "v2v_head"
    if row.image is None:
        return "t2v"
    return "i2v_head" if row.last_image is None else "i2v_loop"


def read_prompts(path: Path) -> list[PromptRow]:
    """Prompts of a file: CSV if its name ends with .csv, else one per line without blank lines and lines with `#`.

    Raises:
        ConfigError: it cannot be read, a row is wrong, or there is no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the prompts cannot be read: {error}") from error
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _lines(path, text)
    if not rows:
        raise ConfigError(f"{path}: there is no prompt in it")
    return rows


def _lines(path: Path, text: str) -> list[PromptRow]:
    lines = enumerate(text.splitlines(), start=1)
    wanted = [(number, line.strip()) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [PromptRow(where=f"{path}:{number}", text=line) for number, line in wanted]


def _csv_rows(path: Path, text: str) -> list[PromptRow]:
    reader = csv.DictReader(text.splitlines(keepends=True), restkey="")
    names = reader.fieldnames or []
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or "text" not in names:
        raise ConfigError(f"{path}:1: columns {list(names)}: a column 'text' is needed; allowed: {', '.join(COLUMNS)}")
    return [_csv_row(f"{path}:{reader.line_num}", row) for row in reader]


def _csv_row(where: str, row: dict[str, str | None]) -> PromptRow:
    values = {name: value.strip() for name, value in row.items() if name and isinstance(value, str) and value.strip()}
    if "" in row:
        raise ConfigError(f"{where}: more values than the header has columns; put quotes around texts with commas")
    if "text" not in values:
        raise ConfigError(f"{where}: text: empty; every row needs a prompt")
    return PromptRow(
        where=where,
        text=values["text"],
        negative=values.get("negative"),
        image=values.get("image"),
        last_image=values.get("last_image"),
        video=values.get("video"),
        condition=_kind(where, values.get("condition")),
        seed=_seed(where, values.get("seed")),
        name=_name(where, values.get("name")),
    )


def _kind(where: str, value: str | None) -> ConditionKind | None:
    for kind in KINDS:
        if value == kind:
            return kind
    if value is not None:
        raise ConfigError(f"{where}: condition: {value!r}; allowed: {', '.join(KINDS)}")
    return None


def _seed(where: str, value: str | None) -> int | None:
    if value is not None and (not value.isdecimal() or int(value) >= SEEDS):
        raise ConfigError(f"{where}: seed: {value!r}; allowed: whole numbers from 0 to {SEEDS - 1}")
    return None if value is None else int(value)


def _name(where: str, value: str | None) -> str | None:
    if value is not None and (value != Path(value).name or value.startswith(".")):
        raise ConfigError(f"{where}: name: {value!r}; allowed: a file name without folder or leading dot")
    return value
