"""Supervised child processes, their addresses and files; used by both clusters."""
