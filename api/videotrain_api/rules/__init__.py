"""Rules between fields that no type expresses; each yields every problem that it finds, with its field path."""
