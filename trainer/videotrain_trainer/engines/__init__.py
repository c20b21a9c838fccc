"""Who does the units of a stage: the processes of the pods themselves, or a Ray cluster."""
