"""Garbage collection: marks what roots reach and sweeps the rest; frees space by evicting what can be fetched again."""
