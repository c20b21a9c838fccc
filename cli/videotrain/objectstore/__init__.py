"""The S3 server that a local run starts, and the client that asks it."""
