"""Records, metrics and formulas."""
