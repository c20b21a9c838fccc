"""What a run made, as files that people keep."""
