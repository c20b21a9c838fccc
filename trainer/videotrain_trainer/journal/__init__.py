"""What the first worker of a run tells beside its records: log lines, records in the store, experiment trackers."""
