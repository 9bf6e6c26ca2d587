"""What becomes of an image and a wish: the OCI bundle that a runtime runs."""
