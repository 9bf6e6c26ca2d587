"""Pushes to a registry: uploads, mounts, manifests, and uploads that continue after a restart."""
