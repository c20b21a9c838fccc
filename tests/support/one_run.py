"""An API server that has one run and the Secret of its object store."""

from __future__ import annotations

import base64
from typing import Any

from videotrain_operator.cluster.interface import NotFound

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class OneRun:
    """Answers for the client that `connect` gives."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self.asked: list[str] = []

    async def __aenter__(self) -> OneRun:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def list(self, _kind: str, _namespace: str) -> list[dict[str, Any]]:
        return [self.run]

    async def get(self, kind: str, _namespace: str, name: str) -> dict[str, Any]:
        self.asked.append(kind)
        if kind != "Secret":
            raise NotFound(name)
        data = {key: base64.b64encode(value.encode()).decode() for key, value in KEYS.items()}
        return {"kind": "Secret", "metadata": {"name": name}, "data": data}
