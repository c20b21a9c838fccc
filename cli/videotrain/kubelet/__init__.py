"""The node agent of a real API server on this machine: pods as process trees."""
