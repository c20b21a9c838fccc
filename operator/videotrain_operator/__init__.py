"""The videotrain operator: observe, plan, apply."""

__version__ = "0.1.0"
