"""The process that runs in every worker pod and obeys rosters."""
