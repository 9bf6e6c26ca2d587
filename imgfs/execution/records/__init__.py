"""What is kept of containers: how each was made, how it is, how it ended, and how that goes."""
