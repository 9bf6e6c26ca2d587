"""The terms of the OCI image and distribution specifications as values: no I/O, no state."""
