"""What is measured of a clip: one module per score, in a table. A score never drops a clip; `bounds` does."""
