"""Sample order, shards and loaders."""
