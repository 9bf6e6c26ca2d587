"""Registries in this process whose faults are scripted, and images to serve by them: for the demo and for tests."""
