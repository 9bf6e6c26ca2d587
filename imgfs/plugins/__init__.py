"""Subsystems as plugins: what one says of itself, how they are found, in which order they start, and how it went."""
