"""The training loop of a stage, and what it is set up from, steps through and leaves behind."""
