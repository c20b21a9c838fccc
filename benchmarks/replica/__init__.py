"""Parts of the benchmark of one rank (rank_replica.py)."""
