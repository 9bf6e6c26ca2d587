"""Image names and their digests, and what is known of a digest before its bytes are local."""
