"""Checks of a state directory: what is damaged, what follows from it, and repair, with or without a daemon."""
