"""Observing and applying through one small interface."""
