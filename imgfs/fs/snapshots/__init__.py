"""snapshots/: image chains, users' snapshots, and both views of their files."""
