"""Requests to the API server as blocking calls, for the little that setting up a cluster needs."""

from __future__ import annotations

import copy
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from videotrain.controlplane.errors import RequestError
from videotrain.controlplane.pki import Pair
from videotrain_api.schema import Json

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
_SECONDS: Final = 30.0


class Api:
    """One user's requests to one API server; safe to use from several threads."""

    def __init__(self, server: str, authority: str, identity: Pair) -> None:
        """Load the certificates; nothing is sent yet.

        Args:
            server: URL of the API server.
            authority: path of its authority's certificate.
            identity: the user's certificate and key.
        """
        address = urlsplit(server)
        assert address.hostname is not None
        self._host, self._port = address.hostname, address.port
        self._tls = ssl.create_default_context(cafile=authority)
        self._tls.load_cert_chain(identity.certificate, identity.key)
        self._kept: http.client.HTTPSConnection | None = None

    def get(self, path: str) -> Json:
        """The object at a path.

        Raises:
            RequestError: the server refused.
            OSError: there was no answer.
        """
        return self.request("GET", path)

    def apply(self, path: str, manifest: Json, manager: str = "videotrain") -> Json:
        """Server-side apply of a whole object."""
        return self.request("PATCH", f"{path}?fieldManager={manager}&force=true", manifest, APPLY)

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Json:
        """Any request.

        Raises:
            RequestError: the server refused.
            OSError: there was no answer.
        """
        status, text = self.text(method, path, body, content)
        if status >= HTTPStatus.BAD_REQUEST:
            raise RequestError(status, f"{method} {path}: {status} {_message(text)}")
        answer: Json = json.loads(text)
        return answer

    def text(self, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, str]:
        """HTTP status and text of an answer, whatever it is.

        Raises:
            OSError: there was no answer.
        """
        connection = self._kept or self._connection()
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": content, "Accept": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            if connection is not self._kept:
                connection.close()

    @contextmanager
    def kept(self) -> Iterator[Api]:
        """The same over one connection, for many requests of one thread."""
        api = copy.copy(self)
        api._kept = self._connection()
        try:
            yield api
        finally:
            api._kept.close()

    def _connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=self._tls)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
