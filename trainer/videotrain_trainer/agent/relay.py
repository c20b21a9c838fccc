"""Passing a roster on to the agents of other pods."""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Final, cast

from videotrain_api.records import RosterNotice, RosterReceipt
from videotrain_api.relay import FANOUT, branches
from videotrain_api.schema import ManifestError
from videotrain_api.signing import Answer, Request, SignatureError
from videotrain_api.vocabulary import PATH_ROSTER, PORT_AGENT

HOP_SECONDS: Final = 1.0
"""What each hop keeps of the time that it was given."""
LONGEST_RECEIPT: Final = 1 << 19
"""Bytes; 4,096 addresses are a third of that."""
log = logging.getLogger(__name__)


def pass_on(notice: RosterNotice, key: bytes) -> list[str]:
    """Send a notice to those whom it names; the addresses of the agents that took it.

    Whoever does not answer in time is left to the operator, with all that it would have told.
    """
    parts = list(branches(notice.to))
    if not parts:
        return []
    seconds = max(HOP_SECONDS, notice.seconds - HOP_SECONDS)
    with ThreadPoolExecutor(FANOUT) as threads:
        found = threads.map(lambda part: _send(part[0], _part(notice, part[1], seconds), key, notice.seconds), parts)
        return [address for told in found for address in told]


def _part(notice: RosterNotice, to: list[str], seconds: float) -> bytes:
    return json.dumps(notice.model_copy(update={"to": to, "seconds": seconds}).to_wire()).encode()


def _send(address: str, body: bytes, key: bytes, seconds: float) -> Iterable[str]:
    request = Request(recipient=address, method="POST", target=PATH_ROSTER, body=body)
    nonce = secrets.token_hex(16)
    headers = request.sign(key, time_us=time.time_ns() // 1000, nonce=nonce)
    connection = http.client.HTTPConnection(address, PORT_AGENT, timeout=max(seconds, HOP_SECONDS))
    try:
        connection.request("POST", PATH_ROSTER, body, headers)
        response = connection.getresponse()
        text = response.read(LONGEST_RECEIPT)
        answer = Answer(status=response.status, etag=response.headers.get("ETag", ""), body=text)
        answer.verify(key, nonce, cast("Mapping[str, str]", response.headers))
        if response.status != HTTPStatus.OK:
            log.warning("agent %s did not take the roster: %d", address, response.status)
            return []
        return RosterReceipt.from_wire(json.loads(text)).told
    except (OSError, http.client.HTTPException, SignatureError, ManifestError, ValueError) as error:
        log.warning("agent %s was not told of the roster, which is left to the operator: %r", address, error)
        return []
    finally:
        connection.close()
