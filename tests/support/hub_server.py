"""A server on this machine that takes uploads as the Hugging Face hub does: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "89abcdef" * 5


class HubServer(ThreadingHTTPServer):
    """What it was given lies in `files` by repository, branch and path."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.large = token, dict[str, bytes]()
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.branches: list[tuple[str, str]] = []
        self.cards: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> None:
        found = self.files.setdefault((repository, branch), {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found[value["path"]] = self.large[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0].strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.server.repositories:
                there = {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
                return self._answer(there, 409)
            self.server.repositories[name] = wanted
            return self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if path == ["api", "validate-yaml"]:
            self.server.cards.append(json.loads(body)["content"])
            return self._answer({"errors": [], "warnings": []})
        if path[:2] == ["api", "models"]:
            repository, what = "/".join(path[2:4]), path[4]
            if what == "preupload":
                modes = [self._mode(file) for file in json.loads(body)["files"]]
                return self._answer({"files": modes})
            if what == "branch":
                self.server.branches.append((repository, path[5]))
                return self._answer({})
            if what == "commit":
                self.server.commit(repository, path[5], [json.loads(line) for line in body.splitlines() if line])
                return self._answer(
                    {"commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                )
        if path[-1] == "batch":
            objects = [self._upload(found) for found in json.loads(body)["objects"]]
            return self._answer({"transfer": "basic", "objects": objects})
        return self._answer({"error": f"unexpected {self.path}"}, 404)

    def do_PUT(self) -> None:
        data, name = self._body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == name
        self.server.large[name] = data
        self._answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        repository = "/".join(path[2:4])
        if path[:2] == ["api", "models"] and repository in self.server.repositories:
            return self._answer({"id": repository, "sha": COMMIT, "siblings": []})
        return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _upload(self, found: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.server.url}/large/{found['oid']}"}}
        return {"oid": found["oid"], "size": found["size"], "authenticated": True, "actions": upload}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def hub_server(token: str = "hf_test") -> Iterator[HubServer]:
    server = HubServer(token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
