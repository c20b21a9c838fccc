"""What each Grafana board shows: rows of panels with their queries.

Queries name series by the catalogue's constants, so that a renamed metric cannot leave an empty panel behind.
"""
