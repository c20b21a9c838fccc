"""Parallelism, applied from outside the models."""
