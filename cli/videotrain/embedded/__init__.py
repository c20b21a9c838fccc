"""A cluster in one process: durable object store, process nodes and a real S3 server."""
