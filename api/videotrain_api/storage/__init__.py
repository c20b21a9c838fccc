"""What the parts of the system keep in the object store: where it lies and what it looks like."""
