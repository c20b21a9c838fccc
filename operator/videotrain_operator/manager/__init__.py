"""The operator as a process: settings, election, one loop per run, health and metrics."""
