"""Fake registries with scripted faults, and images to serve from them, for the demo and for tests."""
