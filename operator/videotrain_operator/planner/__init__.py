"""Pure decisions: what a run needs next."""
