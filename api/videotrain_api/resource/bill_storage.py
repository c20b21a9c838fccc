"""Where the operator of a cluster copies the bills that it keeps: the value `bills` of the chart."""

from __future__ import annotations

from typing import Annotated, Final

from videotrain_api.resource.locations import StorageUri
from videotrain_api.schema import ApiModel, patterned

ENDPOINT: Final = r"^https?://[^\s/?#@]+/?$"
EndpointUrl = Annotated[str, patterned(ENDPOINT, "http(s)://HOST or http(s)://HOST:PORT")]


class BillStorage(ApiModel):
    """An object store for bills. Its credentials are those of the operator's process."""

    uri: StorageUri
    """Bucket and prefix: each run has a folder there, named by its uid, as `videotrain bill --bucket` reads it."""
    endpoint_url: EndpointUrl | None = None
    """S3 endpoint; AWS if unset."""
    region: str = "us-east-1"
    """Region for request signing."""
