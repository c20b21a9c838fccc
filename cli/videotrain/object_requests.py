"""Requests to an object store that may be sent twice: no single answer decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

ATTEMPTS: Final = 7
"""Requests, in all, before an object store counts as one that cannot answer."""
PAUSE_SECONDS: Final = 0.1
"""Before the second request, and twice as long before each further one: 6 s in all."""
MISSING_ANSWERS: Final = 2
"""How many must say that there is no object."""
STORE_ERRORS: Final = (BotoCoreError, Boto3Error, ClientError)
"""What boto3 raises for a request that failed."""
Answer = TypeVar("Answer")


def repeated(request: Callable[[], Answer]) -> Answer:
    """The answer to a request that may be sent twice: one that fails is sent again, whatever the reason.

    Raises:
        ClientError: it was refused at last, or MISSING_ANSWERS say that there is no such object.
        BotoCoreError: there was no answer at last, or none that was whole.
        Boto3Error: likewise, of a download in parts.
    """
    missing = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except STORE_ERRORS as error:
            missing += is_missing(error)
            if attempt == ATTEMPTS or missing == MISSING_ANSWERS:
                raise
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def is_missing(error: Exception) -> bool:
    """Whether it says that there is no such object."""
    answer = error.response if isinstance(error, ClientError) else {}
    return str(answer.get("Error", {}).get("Code", "")) in {"NoSuchKey", "404", "NotFound"}
