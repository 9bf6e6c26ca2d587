"""Garbage collection: mark what roots reach, sweep the rest; and make room by evicting what can be fetched again."""
