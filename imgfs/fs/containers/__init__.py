"""containers/: containers as directories, and their deletion."""
