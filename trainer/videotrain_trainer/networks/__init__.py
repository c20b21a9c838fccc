"""Networks and their weights: one file each, built from a specification by the registry."""
