"""A worker process: entry, stage context, drain, exit codes. It imports nothing, so that light readers stay light."""
