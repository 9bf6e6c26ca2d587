"""Images in other people's files: OCI layouts and docker-archives, read and written. No mount, no registry."""
