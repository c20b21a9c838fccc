"""Who may read /metrics: the API server says whose a bearer token is, and what that user may do.

The same two questions as the authentication and authorization filter of controller-runtime asks, so that one
ClusterRole with `nonResourceURLs: ["/metrics"]` opens this operator as it opens others.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from videotrain_api.vocabulary import FIELD_MANAGER
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

ALLOWED_SECONDS: Final = 60.0
"""How long a token goes on being let in without another question."""
DENIED_SECONDS: Final = 10.0
AWAY_SECONDS: Final = 600.0
"""The same while the API server cannot be asked: a reader that was let in sees that, too."""
KEPT: Final = 256
"""Tokens that are remembered."""
MOST_ASKED: Final = 4
"""Tokens about which the API server is asked at the same time; more are told to come back."""
_PATH: Final = "/metrics"
_SCHEME: Final = "bearer"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Verdict:
    status: HTTPStatus
    at: float

    @property
    def seconds(self) -> float:
        return ALLOWED_SECONDS if self.status is HTTPStatus.OK else DENIED_SECONDS


class Scrapers:
    """Decides about requests for /metrics by TokenReview and SubjectAccessReview, and remembers for a short time."""

    def __init__(self, client: KubeClient, now: Callable[[], float] = time.monotonic) -> None:
        """Nothing is asked before the first request.

        Args:
            client: the API server; its user must be able to create both reviews.
            now: monotonic seconds.
        """
        self._client, self._now = client, now
        self._verdicts: dict[bytes, _Verdict] = {}
        self._asking = 0

    async def judge(self, authorization: str) -> HTTPStatus:
        """200 lets in; 401 for no good token, 403 for a user without the right, 503 if nobody can say now.

        Args:
            authorization: the header of that name; empty if there is none.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != _SCHEME or not token:
            return HTTPStatus.UNAUTHORIZED
        key = hashlib.sha256(token.encode(errors="replace")).digest()  # no token stays in memory
        known = self._verdicts.get(key)
        if known is not None and self._now() - known.at < known.seconds:
            return known.status
        if self._asking >= MOST_ASKED:
            return HTTPStatus.SERVICE_UNAVAILABLE
        self._asking += 1
        try:
            status = await self._ask(token)
        except (ApiError, NotFound, Conflict) as error:
            _log.warning("who reads /metrics could not be asked: %s", error)
            if known is not None and known.status is HTTPStatus.OK and self._now() - known.at < AWAY_SECONDS:
                return known.status
            return HTTPStatus.SERVICE_UNAVAILABLE
        finally:
            self._asking -= 1
        self._verdicts.pop(key, None)
        self._verdicts[key] = _Verdict(status, self._now())
        if len(self._verdicts) > KEPT:
            self._forget_one()
        return status

    def _forget_one(self) -> None:
        """The oldest refusal, before any that was let in: made-up tokens crowd nobody out."""
        denied = (key for key, verdict in self._verdicts.items() if verdict.status is not HTTPStatus.OK)
        del self._verdicts[next(denied, next(iter(self._verdicts)))]

    async def _ask(self, token: str) -> HTTPStatus:
        review = await self._client.create(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "metadata": {},
                "spec": {"token": token},
            },
            FIELD_MANAGER,
        )
        status = review.get("status", {})
        if not status.get("authenticated"):
            return HTTPStatus.UNAUTHORIZED
        user = status["user"]
        access = await self._client.create(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "metadata": {},
                "spec": {
                    "user": user.get("username", ""),
                    "uid": user.get("uid", ""),
                    "groups": user.get("groups", []),
                    "extra": user.get("extra", {}),
                    "nonResourceAttributes": {"path": _PATH, "verb": "get"},
                },
            },
            FIELD_MANAGER,
        )
        return HTTPStatus.OK if access.get("status", {}).get("allowed") else HTTPStatus.FORBIDDEN
