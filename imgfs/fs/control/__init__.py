""".imgfs/: the daemon about itself, and doors to what it does."""
