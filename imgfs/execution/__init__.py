"""Containers: processes on snapshots, run by an OCI runtime.

Each container has its own supervisor process, not the daemon.
"""
