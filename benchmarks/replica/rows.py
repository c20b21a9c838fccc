"""The rows that are measured: those of the shipped recipe that the published tables have, too; and a tiny stand-in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from videotrain_api.config.presets import COMPANIONS, complete_autoencoder, complete_transformer
from videotrain_api.cost import published
from videotrain_api.cost.flops import MmditShape, mmdit_shape
from videotrain_api.generate.speed import RECIPE, RecipeRow, matched_rows
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.validation import parse_run

ROOT = Path(__file__).parents[2]
TINY = ("256px 5-33f", "768px 101-129f")
TINY_DEGREE = 2
"""Of the last of them."""


@dataclass(frozen=True)
class Row:
    """What one rank computes in a micro-batch."""

    recipe: RecipeRow
    samples: int
    degree: int
    """Ranks that share a sequence."""
    image_tokens: int
    """Of a whole sample."""
    text_tokens: int

    @property
    def name(self) -> str:
        """By resolution, frames and published batch: the tables have 768px images twice."""
        return f"{self.recipe.published.name} x{self.recipe.published.batch_size}"

    @property
    def micro_batches(self) -> int:
        """Of a step of one of our groups that has as many samples per GPU as the published one."""
        table = self.recipe.published
        return math.ceil(table.batch_size * self.degree / table.context_parallel / self.samples)

    @property
    def tokens(self) -> int:
        """Image and text tokens of a whole sample."""
        return self.image_tokens + self.text_tokens

    @property
    def own_tokens(self) -> tuple[int, int]:
        """Image and text tokens of a sample that are this rank's."""
        return self.image_tokens // self.degree, self.text_tokens // self.degree


@dataclass(frozen=True)
class Sizes:
    """A model and the rows that it trains."""

    model: TransformerSpec
    autoencoder: AutoencoderSpec
    text: TextEncoderSpec
    rows: tuple[Row, ...]

    @property
    def shape(self) -> MmditShape:
        """What parameters and FLOPs depend on."""
        return mmdit_shape(self.model, self.autoencoder, self.text)


def sizes(tiny: bool) -> Sizes:
    """The 11B model and the recipe's rows; or a model of the same structure and two rows that a CPU can compute."""
    preset = "mmdit-tiny" if tiny else "mmdit-11b"
    autoencoder, text = COMPANIONS[preset]
    model = complete_transformer(TransformerSpec(preset=preset))
    run = parse_run(yaml.safe_load((ROOT / RECIPE).read_text("utf-8")))
    rows = tuple(
        _tiny(row) if tiny else _full(row) for row in matched_rows(run) if not tiny or row.published.name in TINY
    )
    return Sizes(model, complete_autoencoder(AutoencoderSpec(preset=autoencoder)), text, rows)


def _full(row: RecipeRow) -> Row:
    # The tail of an image that a degree does not divide is less than a token in a thousand.
    image = published.row_tokens(row.published) // row.degree * row.degree
    return Row(row, row.bucket.batch_size, row.degree, image, published.TEXT_TOKENS)


def _tiny(row: RecipeRow) -> Row:
    degree = TINY_DEGREE if row.published.context_parallel > 1 else 1
    return Row(row, min(2, row.bucket.batch_size), degree, max(16, published.row_tokens(row.published) // 2048 * 8), 16)
