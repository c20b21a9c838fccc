"""Networks that only a loss needs."""
