"""What runs in the pods of a VideoTrainingRun."""

__version__ = "0.1.0"
