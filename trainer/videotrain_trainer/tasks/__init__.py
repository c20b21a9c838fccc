"""One module per stage task; each has a `run(context)`."""
