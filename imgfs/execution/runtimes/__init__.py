"""The OCI runtimes of this host: which one to use, how to call it, and how to run more programs in a container."""
