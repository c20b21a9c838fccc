"""Forms of names and sizes that stages share."""

from __future__ import annotations

from typing import Annotated

from videotrain_api.schema import patterned

DNS_LABEL = patterned(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "lower-case letters, digits and '-', starting and ending with a letter or digit, at most 40",
    max_length=40,
)
StageName = Annotated[str, DNS_LABEL]
Resolution = Annotated[str, patterned(r"^[1-9][0-9]{1,3}px$", "an area class such as 256px", max_length=6)]
