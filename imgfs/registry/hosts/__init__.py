"""Which hosts stand for a registry, in which order, and what was learnt about each."""
