"""The OCI runtimes of this host: chosen, called, and asked to enter what they run."""
