"""From what a user names (presets, resolution classes, stages) to the resolved configuration that a trainer reads."""
