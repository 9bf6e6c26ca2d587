"""Containers: processes on snapshots, run by an OCI runtime; each has a supervisor of its own, which is no daemon."""
