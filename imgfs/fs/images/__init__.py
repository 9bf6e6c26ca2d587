"""images/: names, images, and requests to registries through unlisted files."""
