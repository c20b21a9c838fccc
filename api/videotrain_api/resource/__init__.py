"""The VideoTrainingRun as users write it, and the status that the operator answers with."""
