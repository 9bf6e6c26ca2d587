"""Makes the OCI bundle of a container from the image and the caller's overrides."""
