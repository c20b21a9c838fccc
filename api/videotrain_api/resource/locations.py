"""Where a manifest says that things are: URIs and paths, with the keys of objects as all of the project reads them.

A key is what stands there: a percent sign and a backslash mean themselves, since nothing decodes or folds a key. But a
part of it that is empty, `.` or `..` is refused: clients and servers fold those, each in its own way, and what one of
them writes another does not find.
"""

from __future__ import annotations

from typing import Annotated, Final

from videotrain_api.schema import patterned

_PARTS: Final = "(/([^{no}/.][^{no}/]*|[.][^{no}/.][^{no}/]*|[.][.][^{no}/]+))*/?"
_NO_S3: Final = "|".join(("[^s].*", "s[^3].*", "s3[^:].*", "s3:[^/].*", "s3:/[^/].*", "s|s3|s3:|s3:/"))

StorageUri = Annotated[
    str,
    patterned(
        "^s3://[a-z0-9][a-z0-9.-]{2,62}" + _PARTS.format(no=r"\s") + "$",
        "s3://BUCKET/PREFIX with a bucket name of 3 to 63 lower-case letters, digits, '.' or '-', and a prefix without "
        "spaces and without parts that are empty, '.' or '..'",
    ),
]
"""Bucket and prefix of an object store."""
Location = Annotated[
    str,
    patterned(
        "^(s3://[^/]+" + _PARTS.format(no="") + f"|{_NO_S3})?$",
        "a path, or a URI; no part of an s3:// URI may be empty, '.' or '..'",
    ),
]
"""A path, or a URI of any kind."""
