"""Image archives of other tools: OCI layouts and docker-archives, read and written. Needs no mount and no registry."""
