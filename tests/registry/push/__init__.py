"""Pushing to a registry: uploads, mounts, manifests, and uploads that go on after a restart."""
