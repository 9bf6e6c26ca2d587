"""System calls for mounts: the mount table, and mounting and unmounting. This package does not know images."""
