""".imgfs/: facts about the daemon, and its control files."""
