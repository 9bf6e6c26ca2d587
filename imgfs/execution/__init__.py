"""Containers: processes on snapshots, run by an OCI runtime.

Each container is watched by a supervisor process of its own, not by the daemon.
"""
