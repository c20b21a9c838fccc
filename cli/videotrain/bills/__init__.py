"""Where bills are found, and how they are shown."""
