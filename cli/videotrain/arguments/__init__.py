"""What the subcommands take: a module for each, which imports its command only when it runs."""
