"""What can go wrong with a control plane on this machine; the messages are for users."""

from __future__ import annotations


class ControlPlaneError(Exception):
    """The control plane, or a program that it needs, cannot be had or does not work."""


class BuildError(ControlPlaneError):
    """The control plane's binary cannot be built here."""


class ComponentEnded(ControlPlaneError):
    """A component ended by itself."""


class RequestError(ControlPlaneError):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status."""
