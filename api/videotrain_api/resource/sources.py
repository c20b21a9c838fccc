"""Where the data of a run comes from when it has several sources, and how much training takes of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from videotrain_api.resource.locations import Location
from videotrain_api.resource.pool import ObjectName
from videotrain_api.schema import ApiModel

SourceName = Annotated[ObjectName, Field(min_length=1, max_length=40)]
SourceForm = Literal["folder", "list", "webdataset", "parquet", "latents"]
"""What lies at a source's URI. For `curate`: a folder of raw videos; a table of their paths and texts (.csv, .parquet,
.jsonl or .json, or a folder of .parquet files); a folder of tar files with a video and its text side by side; a folder
of .parquet files with videos inside. For `train`: an encoded set."""


class Source(ApiModel):
    """A part of the data with a weight."""

    name: SourceName
    """Unique name; paths of its raw videos begin with it and a slash."""
    form: SourceForm = "folder"
    """What lies there: raw videos in a folder, a list, tar files or Parquet files, or an encoded set (`latents`). All
    sources of a run are raw, or all are encoded."""
    uri: Annotated[Location, Field(min_length=1)]
    """Its URI."""
    weight: float | None = Field(default=None, gt=0, le=1_000_000)
    """Share of the samples, relative to the other sources'; all have one, or none. Without, each sample is as likely as
    any other."""


class SourceWeights(ApiModel):
    """Weights for some steps."""

    weights: dict[SourceName, Annotated[float, Field(ge=0, le=1_000_000)]]
    """By name, one for each source; 0 leaves it out."""
    until_step: int | None = Field(default=None, ge=1)
    """Last step; only the final piece may leave it out."""
