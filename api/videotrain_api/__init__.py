"""The VideoTrainingRun API: what users write, what pods read and what the bill is made of."""

__version__ = "0.1.0"
